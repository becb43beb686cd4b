"""Logits of chosen positions."""

import pytest
import torch
from refusals import check_refusal

from headscope.probes import load_model
from headscope.probes.attention.forward import logits
from headscope.probes.models.model import Model


@pytest.fixture(scope="module")
def model(folder) -> Model:
    return load_model(folder)


def test_ids_must_be_a_batch(model):
    for given in (torch.tensor([1, 2]), torch.zeros(1, 0, dtype=torch.long)):
        check_refusal("ids", logits, model, given)
    check_refusal("prompts", logits, model, torch.ones(1, 129, dtype=torch.long))


def test_logits_at_some_positions_are_those_of_all(model):
    ids, positions = torch.arange(12).reshape(2, 6), torch.tensor([[5, 1], [0, 0]])
    with torch.no_grad():
        whole, some = logits(model, ids), logits(model, ids, (), positions)
    expected = torch.stack([row[at] for row, at in zip(whole, positions, strict=True)])
    torch.testing.assert_close(some, expected, rtol=0, atol=1e-5)
    assert not model.module.get_output_embeddings()._forward_pre_hooks

"""The shipped checkpoints: their files, their card, and the recipe that made them."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from headscope.probes.bundled.corpus import SPECIAL, vocabulary
from headscope.probes.bundled_induction import corpus, evaluate, folder, train
from headscope.probes.models.model_source import variants

CARD = json.loads((folder() / "card.json").read_text())
TEXT = (folder() / "README.md").read_text()


def test_files_are_there_and_small() -> None:
    files = list(folder().glob("model.*.safetensors"))
    assert len(files) >= 8
    assert {file.name for file in files} == {f"model.step{one}.safetensors" for one in train.STEPS}
    assert sum(file.stat().st_size for file in files) <= 4_000_000
    assert variants(folder()) == [f"step{one}" for one in train.STEPS]
    assert [int(step) for step in CARD] == list(train.STEPS)


@pytest.mark.parametrize("step", ["0", "400", str(train.STEPS[-1])])
def test_the_card_is_what_is_measured(step: str) -> None:
    found = evaluate.measure(evaluate.load(folder(), f"step{step}"))
    assert found["text"] == pytest.approx(CARD[step]["text"], abs=2e-3)
    assert found["first_time"] == pytest.approx(CARD[step]["first_time"], abs=5e-3)
    for ours, theirs in (
        (found["second_time"], CARD[step]["second_time"]),
        *((found["without"][name], each) for name, each in CARD[step]["without"].items()),
    ):
        assert ours == pytest.approx(theirs, abs=5e-3)
    for name, value in CARD[step]["heads"].items():
        torch.testing.assert_close(
            torch.tensor(found["heads"][name]), torch.tensor(value), atol=5e-3, rtol=0
        )


@pytest.mark.parametrize("step", CARD)
def test_the_card_tells_every_step(step: str) -> None:
    assert evaluate.line(step, CARD[step]) in TEXT


def test_the_first_checkpoint_is_the_initialisation_that_the_recipe_draws() -> None:
    torch.manual_seed(corpus.SEED)
    drawn = LlamaForCausalLM(train.config()).state_dict()
    for name, tensor in load_file(folder() / "model.step0.safetensors").items():
        torch.testing.assert_close(tensor, drawn[name].half(), atol=0, rtol=0)


class TestRows:
    def test_text_hangs_on_the_word_before_alone(self) -> None:
        rows = corpus.text(8, 50, torch.Generator().manual_seed(1))
        after, shares = corpus.successors()
        assert float(shares.sum()) == pytest.approx(1)
        for row in rows.tolist():
            for word, following in pairwise(row):
                assert following in after[word - len(SPECIAL)]
        assert int(rows.min()) >= len(SPECIAL)
        assert int(rows.max()) < len(vocabulary())

    def test_half_of_a_batch_repeats_and_only_what_can_be_foreseen_counts(self) -> None:
        ids, weights = corpus.draw(3)
        assert ids.shape == (corpus.BATCH, corpus.LENGTH + 1)
        assert bool((ids[:, 0] == 0).all())
        for row, weight in zip(ids[: corpus.BATCH // 2, 1:], weights, strict=False):
            period = int((weight == 0).sum())
            assert corpus.PERIODS[0] <= period <= corpus.PERIODS[1]
            assert torch.equal(row[period:], row[:-period])
        assert bool((weights[corpus.BATCH // 2 :, 1:] == 1).all())
        assert torch.equal(ids, corpus.draw(3)[0])

    def test_rows_that_are_measured_were_not_trained_on(self) -> None:
        rows, again = evaluate.held_out()
        assert torch.equal(again[:, 1 : evaluate.PERIOD + 1], again[:, evaluate.PERIOD + 1 :])
        seen = corpus.draw(0)[0]
        for each in (rows, again):
            assert not any(torch.equal(row[1:33], one[1:33]) for row in each for one in seen)


def test_heads_of_one_matrix_keep_their_share_of_its_step() -> None:
    weight = torch.nn.Parameter(torch.zeros(4, 3))
    weight.grad = torch.diag(torch.tensor([3.0, 1.0, 0.5, 0.0]))[:, :3].clone()
    before = weight.grad.clone()
    train.level(weight)
    torch.testing.assert_close(weight.grad.square().mean(), torch.tensor(1.0))
    torch.testing.assert_close(weight.grad / weight.grad.max(), before / before.max())

"""Sinks where keys are not the tokens before a query: cross-attention and an encoder."""

import numpy as np
import pairs
import pytest
import torch
from refusals import check_message

from headscope.analyses import rollout, sinks
from headscope.probes import Pair, capture, load_model

PAIRS = [Pair([3, 4, 5, 6], [0, 9, 8, 7, 6, 5]), Pair([9, 8], [0, 9])]


@pytest.mark.parametrize("attention", ["cross", "encoder"])
def test_sinks_are_means_over_all_queries(attention, paired_folder):
    model = load_model(paired_folder, attention=attention)
    result = sinks.run(capture(model, PAIRS), least_queries=1)
    first, later, expected = [], [], []
    for one in PAIRS:
        pair = Pair(torch.tensor([one.source]), torch.tensor([one.target]))
        _, weights = pairs.eager(model.module, attention, pair)
        alpha = torch.cat(weights).double().numpy().mean(-2)
        first.append(alpha[..., 0])
        later.append(alpha[..., 1:].max(-1))
        expected.append(alpha.mean((0, 1)))
    np.testing.assert_allclose(result["sink"], np.mean(first, 0), atol=5e-5)
    np.testing.assert_allclose(result["later_sink"], np.mean(later, 0), atol=5e-5)
    np.testing.assert_allclose(result["token_received"], expected[0], atol=5e-5)
    assert result["token"].values.tolist() == ["w0", "w1", "w2", "w3"]
    assert "'w0', 'w6'" in result.attrs["convention"]
    assert result.attrs["attention"] == attention


def test_keys_that_too_few_queries_see_are_left_out_of_cross_attention(paired_folder):
    model = load_model(paired_folder, attention="cross")
    result = sinks.run(capture(model, PAIRS[:1]), least_queries=6)
    assert result["key_received"].notnull().all()
    few = sinks.run(capture(model, PAIRS[:1]), least_queries=7)
    assert few["key_received"].isnull().all()


def test_rollout_refuses_what_is_not_one_text(paired_folder):
    cross = load_model(paired_folder, attention="cross")
    result = capture(cross, PAIRS, stats=("pattern", "lse"), keep=("q", "k"))
    for call in (lambda: rollout.rows(result), lambda: rollout.run(result, cross)):
        check_message("is the cross attention of an encoder–decoder", call)
    biased = capture(load_model(cross, attention="encoder"), [[3, 4]], stats=(), keep=("q", "k"))
    check_message("rows know no position bias", rollout.rows, biased)

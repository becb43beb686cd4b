"""What heads do with tokens alone, against dense float64 products of the weights."""

import architectures
import llama_oracle
import numpy as np
import pytest
import torch
from refusals import check_refusal

from headscope.analyses._measurements import token_pairs
from headscope.probes import load_model


@pytest.mark.parametrize("head", [(0, 1), (2, 5), (3, 7)])
def test_pairs_are_those_of_the_dense_products(bundled, head, monkeypatch):
    monkeypatch.setattr(token_pairs, "CELLS", 40 * bundled.vocabulary)
    monkeypatch.setattr(token_pairs, "BLOCK", 100)
    tokens = range(bundled.vocabulary)
    promoted, expected = llama_oracle.token_logits(bundled.module, *head)
    result = token_pairs.vectors(bundled, *head, tokens)
    reports = []
    ov = token_pairs.promoted(bundled, *head, result, tokens, 3, lambda *at: reports.append(at))
    qk = token_pairs.attended_keys(result, tokens, result, 3)
    assert len(reports) > 2
    for got, exact in ((ov, promoted), (qk, expected)):
        best = exact.topk(3)
        np.testing.assert_allclose(got.logits, best.values, atol=2e-3 * float(exact.abs().max()))
        assert (got.others == best.indices.numpy()).mean() > 0.99
        token, other, logit = got.largest(1)[0]
        assert logit == pytest.approx(float(exact.max()), rel=1e-3)
        assert exact[token, other] == pytest.approx(float(exact.max()), rel=1e-3)
    few = token_pairs.vectors(bundled, *head, [7, 3])
    torch.testing.assert_close(few.query, result.query[[7, 3]])
    direct = token_pairs.promoted(bundled, *head, few, [7, 3], 3)
    np.testing.assert_allclose(direct.logits, ov.logits[[7, 3]], rtol=1e-3)


def test_more_tokens_than_channels_go_through_the_few_that_a_head_writes(bundled):
    """The same logits by the whole final norm and unembedding, and by the head's own dimensions."""
    tokens = [
        int(number) for number in np.random.default_rng(0).integers(0, bundled.vocabulary, 400)
    ]
    result = token_pairs.vectors(bundled, 1, 2, tokens)
    many = token_pairs.promoted(bundled, 1, 2, result, tokens, 5)
    exact = llama_oracle.token_logits(bundled.module, 1, 2)[0][tokens]
    np.testing.assert_allclose(many.logits, exact.topk(5).values, atol=1e-3 * exact.abs().max())


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen3"])
def test_other_architectures_give_finite_pairs(family):
    model = load_model(architectures.build(family))
    result = token_pairs.vectors(model, 1, 3, range(64))
    pairs = token_pairs.promoted(model, 1, 3, result, range(64), 4)
    looked = token_pairs.attended_keys(result, range(64), result, 4)
    assert np.isfinite(pairs.logits).all()
    assert pairs.others.shape == (64, 4)
    if family == "gemma2":
        assert abs(looked.logits).max() <= 1.5


def test_models_of_two_texts_and_without_an_unembedding_are_refused(paired_folder):
    check_refusal(
        "model", token_pairs.vectors, load_model(paired_folder, attention="cross"), 0, 0, [1]
    )
    encoder = load_model(architectures.build("bert"))
    result = token_pairs.vectors(encoder, 0, 0, [5, 6])
    check_refusal("model", token_pairs.promoted, encoder, 0, 0, result, [5, 6], 2)

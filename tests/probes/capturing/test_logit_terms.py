"""Terms of one logit: against dense float64 attention, and refused where they do not add up."""

import architectures
import llama_oracle
import numpy as np
import pytest
from refusals import check_refusal

from headscope.probes import capture, load_model, pattern
from headscope.probes.capturing.logit_terms import logit_terms

IDS = [0, 5, 17, 6, 5, 17, 40, 9, 33, 5, 21, 8]


def kept(model, ids=IDS):
    return capture(model, [ids], stats=("lse",), keep=("q", "k"))


@pytest.mark.requirement("F10")
def test_terms_are_those_of_dense_float64_attention(bundled):
    result = kept(bundled)
    for layer, head in ((0, 0), (1, 5), (3, 7)):
        exact = llama_oracle.products(bundled.module, IDS, layer)[head]
        rows = exact.sum(-1)
        for query, key in ((11, 4), (11, 0), (6, 6)):
            got = logit_terms(result, layer, head, query, key)
            np.testing.assert_allclose(got["term"], exact[query, key], atol=2e-4)
            assert float(got["logit"]) == pytest.approx(float(rows[query, key]), abs=1e-3)
            weight = rows[query, : query + 1].softmax(-1)[key]
            assert float(got["weight"]) == pytest.approx(float(weight), abs=1e-4)


@pytest.mark.requirement("F10")
@pytest.mark.parametrize("family", ["gemma2", "mistral", "gpt_oss", "gpt2", "bloom"])
def test_caps_windows_sinks_and_slopes_give_the_weight_of_eager_attention(family):
    module = architectures.build(family)
    model = load_model(module)
    maps = architectures.eager_maps(module, IDS)
    result = kept(model)
    for head, query, key in ((0, 11, 8), (3, 11, 1), (2, 5, 5)):
        got = logit_terms(result, 1, head, query, key)
        assert float(got["score"]) == pytest.approx(float(got["term"].sum()))
        assert float(got["weight"]) == pytest.approx(float(maps[1, head, query, key]), abs=1e-5)
        if family == "gemma2":
            assert got.attrs["softcap"] == 1.5
            assert abs(float(got["capped"])) < abs(float(got["score"]))
        if family == "bloom":
            assert (float(got["bias"]) == 0) == (query == key)


def test_a_key_that_is_not_seen_has_no_weight(bundled):
    got = logit_terms(kept(bundled), 0, 0, query=2, key=5)
    assert float(got["weight"]) == 0
    assert not got.attrs["seen"]


def test_what_does_not_add_up_is_refused(bundled):
    result = kept(bundled)
    check_refusal("attention", logit_terms, result.assign(lse=result["lse"] + 0.1), 0, 0, 3, 1)
    check_refusal("key", logit_terms, result, 0, 0, query=3, key=len(IDS))
    check_refusal("capture", logit_terms, capture(bundled, [IDS], stats=("lse",)), 0, 0, 3, 1)
    whole = pattern(result, 0, 0).values
    assert float(logit_terms(result, 0, 0, 3, 1)["weight"]) == pytest.approx(whole[3, 1], abs=1e-6)

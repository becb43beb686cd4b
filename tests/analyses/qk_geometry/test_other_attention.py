"""The analyses of geometry on other kinds of attention: windows, caps, sinks, no order, no map."""

import architectures
import numpy as np
import pytest
from refusals import refusal

from headscope import viz
from headscope.analyses import embedding, frequencies, head_rank, positionality, similarity
from headscope.analyses._measurements import qk_rows
from headscope.analyses._runtime.results import attending
from headscope.probes import capture, load_model

FAMILIES = ("gemma2", "gpt_oss", "lfm2", "olmo2", "gptj", "bloom", "bert")
ANALYSES = {
    "head_rank": head_rank, "embedding": embedding, "similarity": similarity,
    "frequencies": frequencies, "positionality": positionality,
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def given(request):
    model = load_model(architectures.build(request.param))
    ids = [np.random.default_rng(size).integers(2, 62, size).tolist() for size in (30, 30, 21)]
    cap = capture(model, ids, stats=("lse", "first_mass", "pattern"), keep=("q", "k", "z", "resid"))
    return request.param, model, cap


def test_rows_are_those_of_the_pattern(given):
    _, model, cap = given
    compare(model, cap)


def compare(model, cap):
    for prompt, length in ((0, 30), (2, 21)):
        places = np.array([0, 5, length - 1])
        for layer in model.geometry.attending:
            weights = qk_rows.rows(cap, prompt, layer, places).weights()
            expected = cap["pattern"].values[prompt, layer][:, places, :length]
            np.testing.assert_allclose(weights, expected, atol=2e-5)


@pytest.mark.parametrize("name", ANALYSES)
def test_layers_with_a_map_have_numbers_and_layers_without_have_none(name, given):
    family, model, cap = given
    options = {"clusters": 2} if name == "similarity" else {}
    arguments = (cap,) if name == "embedding" else (cap, model)
    if name == "frequencies" and family in ("bloom", "bert"):
        assert "do not turn" in str(refusal(ANALYSES[name].run, *arguments))
        return
    result = ANALYSES[name].run(*arguments, **options)
    has_map = attending(cap)
    for variable in viz.variables(result):
        array = result[variable]
        assert viz.draw(result, variable).data
        if {"layer", "head"} <= set(array.dims) and variable != "carried":
            known = np.isfinite(array.transpose("layer", ...).values.astype(float))
            assert known[has_map].all(), variable
            assert not known[~has_map].any(), variable
    if name in ("similarity", "positionality", "frequencies"):
        # A row with a learned sink does not sum to 1, so it cannot be fixed.
        assert ("moved" in result) == (family != "gpt_oss")

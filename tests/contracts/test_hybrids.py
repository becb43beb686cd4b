"""What every analysis owes to hybrid models: a new file in analyses/ is checked here unasked.

Two of four layers of the model have no attention map. Nothing may be said about them, and nothing
that is said about the others may depend on them.
"""

import constructed
import numpy as np
import pytest
import xarray as xr

from headscope import analyses, viz
from headscope.analyses import sinks
from headscope.analyses._interventions.ablation import evaluate
from headscope.analyses._runtime import runner
from headscope.kernels.errors import HeadscopeError
from headscope.probes import capture, load_model
from headscope.probes.interventions import Ablate
from headscope.probes.models.model import Model
from headscope.probes.prompts import tasks

ABSENT, ATTENDING = [0, 2], [1, 3]
PROMPTS = 4
EDGES = {"source_layer", "target_layer"}


@pytest.fixture(scope="module")
def hybrid(bundled: Model) -> Model:
    return load_model(constructed.hybrid(bundled.vocabulary), tokenizer=bundled.tokenizer)


def execute(name: str, model: Model) -> xr.Dataset:
    prompts = tasks.make("story", tokenizer=model.tokenizer, n=PROMPTS, seed=1)
    options = getattr(analyses.load(name), "QUICK", {})
    return runner.execute(name, model, prompts, n=PROMPTS, seed=1, options=options)


@pytest.fixture(scope="module", params=analyses.names())
def outcome(
    request: pytest.FixtureRequest, hybrid: Model
) -> tuple[str, xr.Dataset | HeadscopeError]:
    try:
        return request.param, execute(request.param, hybrid)
    except HeadscopeError as refusal:
        return request.param, refusal


def test_nothing_is_reported_about_layers_without_attention(outcome):
    name, result = outcome
    assert isinstance(result, HeadscopeError) == ("hybrid" not in analyses.load(name).SUPPORTS)
    if isinstance(result, HeadscopeError):
        assert str(result).startswith("attention_map: ")
        assert "layer 0, 2" in str(result)
        return
    grids = [one for one in result.data_vars if "layer" in result[one].dims]
    assert grids, f"{name} says nothing about heads; leave it out here by its dims"
    for variable in grids:
        array = result[variable]
        assert array.dtype.kind == "f", variable
        assert array.isel(layer=ABSENT).isnull().all(), variable
        assert viz.absent(array) == [True, False, True, False], variable
    # Of an analysis of one layer, that layer is known; of all others, all that attend.
    known = [result[one].isel(layer=ATTENDING).notnull() for one in grids]
    if "layer" in analyses.options(name):
        known = [each.isel(layer=each.any("head").values) for each in known]
        assert all(each.sizes["layer"] for each in known)
    assert any(each.all() for each in known)
    edges = {at for one in EDGES & set(result.coords) for at in result[one].values[:5].tolist()}
    assert edges <= set(ATTENDING)


def test_every_view_draws_what_there_is(outcome):
    _, result = outcome
    if isinstance(result, HeadscopeError):
        return
    for variable in viz.variables(result):
        figure = viz.draw(result, variable)
        assert figure.data
        if {"layer", "head"} == set(result[variable].dims):
            hover = [text for row in figure.data[-1].hovertext for text in row]
            assert sum(viz.ABSENT in text for text in hover) == 8
            # Ranks are places among the heads that have one.
            assert all("of 16" not in text for text in hover)


def test_no_head_of_such_a_layer_is_named(outcome):
    _, result = outcome
    if isinstance(result, HeadscopeError):
        return
    output = repr({key: each for key, each in result.attrs.items() if key != "prompts_sha256"})
    assert "L0H" not in output
    assert "L2H" not in output


def test_shares_are_of_the_heads_that_attend(hybrid):
    # ε = 0: every head that has a number is above it, so a share counts nothing else or is below 1.
    actual = capture(hybrid, [[0, *range(5, 40)]], stats=("received", "lse"), keep=("q", "k"))
    result = sinks.run(actual, epsilon=0.0)
    assert float(result["sink_rate"]) == 100.0
    assert float(result["key_share"].max()) == float(result["token_share"].max()) == 1.0
    only = sinks.run(actual.isel(layer=ATTENDING).drop_vars("attention_map"), epsilon=0.3)
    whole = sinks.run(actual, epsilon=0.3)
    for name in ("sink_rate", "key_received", "key_share", "token_received"):
        np.testing.assert_array_equal(whole[name].values, only[name].values)
    np.testing.assert_array_equal(whole["sink"].values[ATTENDING], only["sink"].values)


def test_importance_of_a_layer_with_attention_does_not_depend_on_the_others(hybrid):
    result = runner.execute("importance", hybrid, n=PROMPTS, seed=1)
    task = tasks.make("ioi", tokenizer=hybrid.tokenizer, n=PROMPTS, seed=1)
    intact = evaluate(hybrid, task)
    for layer, head in ((1, 2), (3, 0)):
        lost = float((intact - evaluate(hybrid, task, (Ablate(heads=((layer, head),)),))).mean())
        actual = result["zero_ablation"].sel(layer=layer, head=head)
        assert float(actual) == pytest.approx(lost, abs=1e-6)
    # Ranks are correlated over 8 heads; 8 zeros on either side would agree with each other.
    pair = [np.abs(result[one].values[ATTENDING]) for one in ("gate_gradient", "zero_ablation")]
    ranks = [np.argsort(np.argsort(one.ravel())).astype(float) for one in pair]
    rho = float(np.corrcoef(*ranks)[0, 1])
    assert float(result["gate_vs_zero"]) == pytest.approx(rho, abs=1e-6)

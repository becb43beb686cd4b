import numpy as np
import pytest
import xarray as xr
from constructed import KEYS, PREVIOUS, SINK, UNIFORM, WORDS

from headscope.analyses import concentration
from headscope.analyses._runtime.runner import execute
from headscope.probes import capture
from headscope.probes.interventions import Temperature
from headscope.probes.prompts import tasks

pytestmark = pytest.mark.requirement("A16")

LENGTH = 64
STATS = concentration.NEEDS


@pytest.fixture(scope="module")
def result(circuit):
    # One word throughout, so that only the places matter.
    ids = [[WORDS.index("<bos>"), *[WORDS.index(KEYS[turn])] * (LENGTH - 1)] for turn in range(3)]
    return concentration.run(capture(circuit, ids, stats=STATS), circuit, causal_prompts=0)


def test_even_and_saturated_heads_have_the_closed_forms(result):
    scores = {name: result[name].values for name in result.data_vars}
    n = np.arange(9.0, LENGTH + 1)
    np.testing.assert_allclose(scores["concentration"][UNIFORM], (8 / n).mean(), rtol=1e-5)
    np.testing.assert_allclose(scores["dilution"][UNIFORM], 1, atol=0.02)
    np.testing.assert_allclose(scores["spikiness"][UNIFORM], 0, atol=1e-5)
    np.testing.assert_allclose(scores["inverse_temperature"][UNIFORM], 0, atol=2e-3)
    # The first column of an even causal map is 1, 1/2, 1/3, …
    column = (1 / np.arange(1.0, LENGTH + 1) ** 2).sum()
    np.testing.assert_allclose(scores["column_hardness"][UNIFORM], LENGTH * column, rtol=1e-5)
    for head in (PREVIOUS, SINK):
        np.testing.assert_allclose(scores["concentration"][head], 1, atol=1e-3)
        np.testing.assert_allclose(scores["dilution"][head], 0, atol=1e-3)
        assert scores["spikiness"][head] > 0.99
        freezing = np.sqrt(2 * np.log(np.arange(2, LENGTH + 1))).mean()
        np.testing.assert_allclose(scores["inverse_temperature"][head], freezing, rtol=0.01)
    # Everybody attends to the first token, or each to a key of its own (two attend to the first).
    np.testing.assert_allclose(scores["column_share"][SINK], 1, atol=1e-3)
    np.testing.assert_allclose(scores["column_hardness"][PREVIOUS], 2 * LENGTH, rtol=2e-3)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5])
def test_gaussian_logits_have_their_own_temperature(circuit, sigma):
    logits = np.random.default_rng(0).normal(0, sigma, size=(64, 4096))
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    entropies = -(np.exp(logs) * logs).sum(-1)
    given = xr.Dataset(
        {
            "entropy": (("prompt", "layer", "head", "query"), entropies[:, None, None, None]),
            "first_mass": (("prompt", "layer", "head", "query"), np.zeros((64, 1, 1, 1))),
            "topk": (("prompt", "layer", "head", "query", "rank"), np.ones((64, 1, 1, 1, 2))),
            "column_norm": (("prompt", "layer", "head", "key"), np.ones((64, 1, 1, 1))),
        },
        coords={
            "layer": [0], "head": [0], "length": ("prompt", np.full(64, 4096)),
            "causal": ("layer", [False]), "window": ("layer", [np.nan]),
        },
    )  # fmt: skip
    padded = given.pad(query=(0, 4095), key=(0, 4095), constant_values=np.nan)
    result = concentration.run(padded, circuit, causal_prompts=0)
    np.testing.assert_allclose(result["inverse_temperature"], sigma, rtol=0.02)
    np.testing.assert_allclose(result["temperature"], 1 / sigma, rtol=0.02)


def test_a_temperature_edit_moves_the_effective_temperature_by_its_factor(random_llama):
    ids = np.random.default_rng(0).integers(1, len(WORDS), size=(3, LENGTH)).tolist()
    heads = tuple((layer, head) for layer in range(2) for head in range(4))
    actual = []
    for value in (1 / 40, 1 / 20):
        cap = capture(random_llama, ids, stats=STATS, edits=(Temperature(heads, value),))
        result = concentration.run(cap, random_llama, causal_prompts=0)
        actual.append(result["temperature"].values[0])
    np.testing.assert_allclose(actual[1] / actual[0], 2, rtol=0.1)


def test_spreading_the_spiky_heads_costs_the_bundled_model_more(bundled):
    task = tasks.make("needle", tokenizer=bundled.tokenizer, n=16, seed=2, length=120)
    result = execute("concentration", bundled, task)
    intact, spiky, broad = result["spread_loss"].values
    assert spiky - intact > 5 * (broad - intact)
    assert result.attrs["verdict"] == "supported"


def test_a_sink_is_left_out_of_the_columns_on_request(circuit):
    ids = [[WORDS.index("<bos>"), *[WORDS.index("apple")] * 31]] * 2
    captured = capture(circuit, ids, stats=STATS)
    options = [{"skip_keys": skip, "causal_prompts": 0} for skip in (0, 1)]
    results = [concentration.run(captured, circuit, **option) for option in options]
    whole, rest = (result["column_hardness"].values for result in results)
    assert rest[SINK] < 1e-2 < whole[SINK]
    np.testing.assert_allclose(rest[PREVIOUS], 32, rtol=2e-3)

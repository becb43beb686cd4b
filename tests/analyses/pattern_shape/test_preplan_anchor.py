import numpy as np
import pytest
import xarray as xr
from constructed import PREVIOUS, SINK, UNIFORM, WORDS
from refusals import check_refusal

from headscope.analyses import preplan_anchor
from headscope.analyses._runtime.runner import execute
from headscope.analyses.pattern_shape import _peaks
from headscope.kernels.errors import HeadscopeError
from headscope.probes import capture
from headscope.probes.prompts import tasks

pytestmark = pytest.mark.requirement("A7")

LENGTH, PROMPTS, WINDOW = 120, 6, 10


def planted(lag: int | None, seed: int = 0) -> xr.Dataset:
    """A local head that reaches out at random places, a global one that anchors `lag` later."""
    generator = np.random.default_rng(seed)
    near = np.zeros((PROMPTS, 1, 2, LENGTH, WINDOW))
    near[..., 0] = 1
    later = generator.uniform(0, 0.01, size=(PROMPTS, 1, 2, LENGTH))
    later[..., -1] = np.nan
    for prompt in range(PROMPTS):
        plans = generator.permutation(np.arange(5, LENGTH - 5))[:20]
        near[prompt, 0, 0, plans, 0] = 0
        places = plans + lag if lag is not None else generator.permutation(LENGTH - 1)[:20]
        later[prompt, 0, 1, places] += 0.5
    distance = np.ones((PROMPTS, 1, 2, LENGTH))
    distance[:, :, 1] = 30
    return xr.Dataset(
        {
            "offset_mass": (("prompt", "layer", "head", "query", "offset"), near),
            "received_later": (("prompt", "layer", "head", "key"), later),
            "distance": (("prompt", "layer", "head", "query"), distance),
            "first_mass": (("prompt", "layer", "head", "query"), np.zeros(distance.shape)),
        },
        coords={
            "layer": [0], "head": [0, 1], "offset": np.arange(WINDOW),
            "length": ("prompt", np.full(PROMPTS, LENGTH)), "causal": ("layer", [True]),
            "window": ("layer", [np.nan]),
        },
        attrs={"horizon": [1, 64], "clip": ""},
    )  # fmt: skip


@pytest.mark.parametrize("lag", [-2, 0, 3])
def test_a_planted_lag_is_found_and_is_no_chance(circuit, lag):
    result = preplan_anchor.run(planted(lag), circuit, peaks=0.17, causal_prompts=0)
    assert result.attrs["heads_by_type"] == {"local": ["L0H0"], "global": ["L0H1"]}
    assert float(result["coupling_lag"]) == lag
    assert float(result["coupling_lag_lower"]) == float(result["coupling_lag_upper"]) == lag
    assert float(result["chance_of_coupling"]) < 0.01
    coupling = dict(zip(result["lag"].values, result["coupling"].values, strict=True))
    assert coupling[f"{lag:+d}"] > 0.95
    assert max(value for at, value in coupling.items() if at != f"{lag:+d}") < 0.45
    # Circularly shifted, a peak meets an anchor as often as there are anchors.
    np.testing.assert_allclose(result["chance"], 20 / LENGTH, atol=0.03)
    assert f"{lag:+d} tokens" in result.attrs["note"]


def test_peaks_that_do_not_keep_time_are_chance(circuit):
    beaten = [
        float(preplan_anchor.run(planted(None, seed), circuit, peaks=0.17, causal_prompts=0)
              ["chance_of_coupling"])
        for seed in range(5)
    ]  # fmt: skip
    assert np.median(beaten) > 0.1


def test_waad_and_fai_agree_with_the_dense_maps(bundled):
    ids = [np.random.default_rng(seed).integers(2, 400, size=40).tolist() for seed in range(2)]
    stats = (*preplan_anchor.NEEDS, "pattern")
    cap = capture(bundled, ids, stats=stats, offsets=preplan_anchor.OFFSETS, horizon=(2, 9))
    result = preplan_anchor.run(cap, bundled, causal_prompts=0)
    weights = cap["pattern"].values.astype(float)
    back = np.arange(40)[:, None] - np.arange(40)
    waad = (weights * np.minimum(back, WINDOW)).sum(-1)
    np.testing.assert_allclose(result["waad_head"], waad.mean((0, -1)), atol=1e-4)
    inside = (back >= 2) & (back <= 9)
    with np.errstate(invalid="ignore"):
        fai = (weights[0] * inside).sum(-2) / inside.sum(-2)
    kinds = result.attrs["heads_by_type"]
    for name, values, kind in (("waad", waad[0], "local"), ("fai", fai, "global")):
        heads = [(int(one[1]), int(one[3:])) for one in kinds[kind]]
        expected = np.mean([values[head] for head in heads], axis=0)
        np.testing.assert_allclose(result[name], expected, atol=1e-5)


def test_planted_heads_are_local_and_global(circuit):
    ids = [[0, *[WORDS.index("apple")] * 39]] * 2
    cap = capture(circuit, ids, stats=preplan_anchor.NEEDS, offsets=preplan_anchor.OFFSETS)
    result = preplan_anchor.run(cap, circuit, extremes=0.2, causal_prompts=0)
    at = np.arange(40)
    even = [np.minimum(np.arange(n + 1), WINDOW).mean() for n in at]
    scores = result["waad_head"].values
    np.testing.assert_allclose(scores[UNIFORM], np.mean(even), rtol=1e-4)
    np.testing.assert_allclose(scores[PREVIOUS], 39 / 40, rtol=2e-3)
    np.testing.assert_allclose(scores[SINK], np.minimum(at, WINDOW).mean(), rtol=2e-3)
    assert result.attrs["heads_by_type"]["local"] == ["L0H0"]
    np.testing.assert_allclose(result["distance"].values[SINK], at.mean(), rtol=2e-3)
    assert result.attrs["heads_by_type"]["global"][0] == "L0H1"


def test_hiding_anchors_costs_the_bundled_model_more_than_hiding_others(bundled):
    task = tasks.make("story", tokenizer=bundled.tokenizer, n=16, seed=2)
    result = execute("preplan_anchor", bundled, task)
    intact, hidden, others = result["anchor_loss"].values
    assert hidden - intact > 2 * max(others - intact, 0.02)
    assert result.attrs["verdict"] == "supported"


def test_coupling_leaves_out_partners_outside_the_text():
    result = _peaks.coupled([np.array([0, 9])], [np.array([1])], [10], 1, 0)
    assert result.tolist() == [[0.0, 0.0, 1.0]]
    assert np.isnan(_peaks.coupled([np.array([9])], [np.array([1])], [10], 1, 0)[0, 2])


def test_bad_input_is_refused(circuit):
    needed = {"stats": preplan_anchor.NEEDS, "offsets": preplan_anchor.OFFSETS}
    cap = capture(circuit, [[0, 5, 6, 7]], **needed)
    check_refusal("prompts", preplan_anchor.run, cap, circuit)
    check_refusal("capture", preplan_anchor.run, planted(0).isel(offset=slice(0, 4)), circuit)
    with pytest.raises(HeadscopeError, match="causal"):
        preplan_anchor.run(planted(0).assign_coords(causal=("layer", [False])), circuit)

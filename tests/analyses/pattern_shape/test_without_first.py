"""Rows without their first token, against dense float64 rows that are renormalised."""

from itertools import pairwise

import numpy as np
import pytest
import xarray as xr
from refusals import check_refusal

from headscope.analyses import concentration, entropy, preplan_anchor, span
from headscope.analyses._measurements import without_first
from headscope.analyses._runtime.runner import execute
from headscope.analyses._stats.length_trend import mean, per_query
from headscope.analyses.conditions import _conditions
from headscope.kernels.errors import HeadscopeError
from headscope.probes import capture
from headscope.probes.prompts import tasks

LEAST = 1e-3


@pytest.fixture(scope="module")
def held(bundled) -> xr.Dataset:
    task = tasks.make("story", tokenizer=bundled.tokenizer, n=3, seed=4)
    names = {*entropy.NEEDS, *span.NEEDS, *concentration.NEEDS, *preplan_anchor.NEEDS, "pattern"}
    names |= {"distance_hist"}
    return capture(bundled, task, stats=tuple(sorted(names)), offsets=preplan_anchor.OFFSETS)


def renormalised(held: xr.Dataset) -> np.ndarray:
    """Weights over all keys but the first (prompt, layer, head, query, key), NaN left out."""
    dims = ("prompt", "layer", "head", "query", "key")
    weights = held["pattern"].transpose(*dims).values.astype(np.float64)
    rest = np.where(np.arange(weights.shape[-1]) == 0, 0, np.nan_to_num(weights))
    total = rest.sum(-1, keepdims=True)
    inside = np.arange(weights.shape[-2]) < held["length"].values[:, None]
    known = (total[..., 0] >= LEAST) & inside[:, None, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known[..., None], rest / total, np.nan)


def test_entropy_and_distance_are_those_of_renormalised_rows(held):
    rows, first = renormalised(held), without_first.mass(held)
    logs = np.log(np.where(rows > 0, rows, 1))
    at = np.arange(rows.shape[-1])
    expected = -(rows * logs).sum(-1), (rows * np.abs(at[:, None] - at)).sum(-1)
    raw = [held[name].transpose("prompt", "layer", "head", "query").values.astype(np.float64)
           for name in ("entropy", "distance")]  # fmt: skip
    result = without_first.entropy(raw[0], first), without_first.distance(raw[1], first)
    for one, other in zip(result, expected, strict=True):
        assert np.isfinite(other).any()
        # A row that leaves a thousandth loses three digits of float32.
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3)


def test_results_are_means_over_such_rows(held, bundled):
    rows = renormalised(held)
    logs = np.log(np.where(rows > 0, rows, 1))
    entropies = -(rows * logs).sum(-1)
    places = np.arange(rows.shape[-2])
    # Two visible keys leave one, which has no entropy.
    entropies = np.where(places > 1, entropies, np.nan)
    result = entropy.run(held)
    actual = result["entropy_without_first"].values
    np.testing.assert_allclose(actual, np.nanmean(mean(entropies), 0), atol=2e-3)
    share = mean(entropies / np.log(np.maximum(places, 1.5)))
    np.testing.assert_allclose(result["entropy_share_without_first"], mean(share, 0), atol=2e-3)
    spiky = concentration.run(held, bundled, causal_prompts=0)["spikiness_without_first"]
    np.testing.assert_allclose(spiky, 1 - mean(share, 0), atol=2e-3)


@pytest.mark.requirement("A12")
def test_strength_by_distance_is_that_of_renormalised_rows(held):
    rows, first = renormalised(held), without_first.mass(held)
    edges = [*held["bin"].values.tolist(), np.inf]
    at = np.arange(rows.shape[-1])
    distance = np.abs(at[:, None] - at)
    expected = np.stack(
        [np.where((distance >= low) & (distance < high), rows, 0).sum(-1)
         for low, high in pairwise(edges)], -1,
    )  # fmt: skip
    expected = np.where(np.isnan(first)[..., None], np.nan, expected)
    result = without_first.strength(per_query(held, "distance_hist"), first, held["bin"].values)
    np.testing.assert_allclose(result, expected, rtol=2e-3, atol=2e-3)


def test_concentration_and_temperature_are_those_of_renormalised_rows(held, bundled):
    rows, first = renormalised(held), without_first.mass(held)
    largest = np.sort(rows)[..., ::-1]
    weights = per_query(held, "topk")
    kept = weights.shape[-1] - 1
    actual = np.nan_to_num(without_first.largest(weights, first))
    np.testing.assert_allclose(actual, np.nan_to_num(largest[..., :kept]), rtol=2e-3, atol=2e-3)
    result = concentration.run(held, bundled, causal_prompts=0)
    others = np.arange(rows.shape[-2])
    full = np.where(others > kept, largest[..., :kept].sum(-1), np.nan)
    np.testing.assert_allclose(
        result["concentration_without_first"], mean(mean(full), 0), atol=2e-3
    )
    logs = np.log(np.where(rows > 0, rows, 1))
    with np.errstate(divide="ignore"):
        left = np.where(others > 1, np.log(others), np.nan) + (rows * logs).sum(-1)
    sigma = mean(mean(np.sqrt(np.maximum(2 * left, 0))), 0)
    np.testing.assert_allclose(result["inverse_temperature_without_first"], sigma, atol=5e-3)
    np.testing.assert_allclose(result["temperature_without_first"], 1 / sigma, rtol=2e-2)


@pytest.mark.parametrize("name", ["entropy", "distance"])
def test_conditions_are_compared_by_renormalised_rows(bundled, name):
    task = tasks.make("induction", tokenizer=bundled.tokenizer, n=3, seed=4)
    here, _ = _conditions.pair(bundled, task, "corrupted")
    result, _ = _conditions.read_heads(bundled, here, [f"{name}_without_first"], [[1]] * 3)
    held = capture(bundled, [list(ids) for ids in here.ids], stats=("pattern", "first_mass"))
    rows = renormalised(held)
    logs, at = np.log(np.where(rows > 0, rows, 1)), np.arange(rows.shape[-1])
    parts = {"entropy": -(rows * logs), "distance": rows * np.abs(at[:, None] - at)}
    expected = [
        mean(parts[name].sum(-1)[row][..., list(dict.fromkeys(queries))])
        for row, queries in enumerate(here.queries)
    ]
    np.testing.assert_allclose(result[f"{name}_without_first"], expected, rtol=2e-3, atol=2e-3)


def test_a_comparison_leads_with_the_rows_that_the_sink_does_not_hide(bundled, monkeypatch):
    for sinks, names in ((True, ["entropy_without_first", "entropy"]),
                         (False, ["entropy", "entropy_without_first"])):  # fmt: skip
        monkeypatch.setattr(without_first, "LARGE", -1.0 if sinks else 1.0)
        options = {"statistics": "entropy", "checked": 1, "draws": 1}
        result = execute("contrast", bundled, task="induction", n=3, options=options)
        assert result["statistic"].values.tolist() == names
        assert ("lies on the first token" in result.attrs["note"]) == sinks


def test_spans_hold_the_share_of_what_is_left(held, bundled):
    rows = renormalised(held)
    at = np.arange(rows.shape[-1])
    distance = np.abs(at[:, None] - at)
    mass = np.stack([np.where(distance < w, rows, 0).sum(-1) for w in range(1, len(at) + 1)], -1)
    spans = np.where(np.isnan(rows).any(-1), np.nan, (mass >= 0.9).argmax(-1) + 1)
    kept = held["span_without_first"].transpose("prompt", "layer", "head", "query").values
    known = ~np.isnan(spans)
    assert (kept[known] == spans[known]).mean() > 0.999
    result = span.run(held, bundled, causal_prompts=0)
    names = result["length"].values.tolist()
    low, high = int(names[-1].split()[0]), int(names[-1].split()[2])
    last = mean(spans[..., low - 1 : high])
    np.testing.assert_allclose(result["span_without_first"], mean(last, 0), rtol=5e-3)


def test_what_a_sink_hides_leads_where_there_is_one(circuit, held, bundled):
    """The numbers without the first token come first where half of the heads are sinks."""
    rows = np.zeros((2, 1, 2, 40))
    rows[:, :, 0, :] = np.log(np.arange(1, 41)) * 0.02
    masses = np.ones((2, 1, 2, 40))
    masses[..., 1:] = 0.8
    places = {"layer": [0], "head": [0, 1], "length": ("prompt", [40, 40]),
              "causal": ("layer", [True]), "window": ("layer", [np.nan])}  # fmt: skip
    dims = ("prompt", "layer", "head", "query")
    held_here = xr.Dataset({"entropy": (dims, rows), "first_mass": (dims, masses)}, places)
    result = entropy.run(held_here)
    assert next(iter(result)) == "entropy_without_first"
    assert result.attrs["note"].startswith("80% of the attention lies on the first token")
    low = held_here.assign(first_mass=(dims, np.full(masses.shape, 0.2)))
    assert next(iter(entropy.run(low))) == "entropy"
    assert "first token" not in entropy.run(low).attrs["note"]


def test_more_than_one_first_key_is_refused(held):
    check_refusal("capture", entropy.run, held.assign_attrs(first=4))
    with pytest.raises(HeadscopeError, match="first=4"):
        without_first.mass(held.assign_attrs(first=4))

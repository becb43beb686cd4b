"""Preplan and anchor: lagged coupling of peaks in attention distance and in later influence.

Windowed average attention distance, ``WAAD_t = Σ_s P_ts min(t − s, W)`` averaged over local heads,
peaks where a query attends beyond its neighbourhood (preplan). Future attention influence, the mean
weight that a token gets from later queries inside a horizon, averaged over global heads, peaks at
tokens that later queries keep attending to (anchors). Local heads are those of the smallest mean
distance, global ones of the largest; where the first token has 25 % more of all mass than in even
rows, distances are those of the weights renormalised over the other keys, so that a sink does not
make a head global. The coupling at a lag is the share of WAAD peaks with an FAI peak that many
tokens later; by chance it is what stays when each prompt's FAI is circularly shifted. The causal
number: the loss with the anchors hidden from the global heads, and with as many others.

Source: Attention Illuminates LLM Reasoning: The Preplan-and-Anchor Rhythm (Li et al.).
"""

from typing import Annotated

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.next_token_loss import contrast, predicts, tokens
from headscope.analyses._measurements import without_first
from headscope.analyses._measurements.received import token_axis
from headscope.analyses._runtime.options import AtLeast, Between
from headscope.analyses._runtime.results import (
    GRID,
    SHARE,
    ZERO_TO_ONE,
    Results,
    label,
    require,
    top,
)
from headscope.analyses._runtime.verdict import Verdict, causal_verdict
from headscope.analyses._stats.bootstrap import percentiles
from headscope.analyses._stats.length_trend import Array, length_note, mean, per_query
from headscope.analyses.pattern_shape import _peaks
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import amount, percent
from headscope.probes.interventions import KnockOut
from headscope.probes.models.model import Model

NEEDS = ("offset_mass", "received_later", "distance", "first_mass")
OFFSETS = tuple(range(10))
QUICK = {"causal_prompts": 2}
SUPPORTS = {"hybrid"}

SOURCE = "Attention Illuminates LLM Reasoning (Li et al.)"
CONDITIONS = ("intact", "anchors hidden", "as many other tokens hidden")
SHORTEST = 8


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    window: Annotated[int, AtLeast(2)] = 10,
    extremes: Annotated[float, Between(0.01, 0.5)] = 0.3,
    peaks: Annotated[float, Between(0.01, 0.5)] = 0.2,
    lags: Annotated[int, AtLeast(1)] = 8,
    skip: Annotated[int, AtLeast(0)] = 1,
    shifts: Annotated[int, AtLeast(20)] = 500,
    causal_prompts: Annotated[int, AtLeast(0)] = 16,
    seed: int = 0,
) -> xr.Dataset:
    """Find local and global heads, the peaks of WAAD and FAI, and the lag between them.

    Parameters
    ----------
    capture
        Capture of the prompts with ``distance``, ``received_later`` (its ``horizon`` is stated with
        the result) and ``offset_mass`` at the offsets 0 … window − 1.
    model
        Model that was captured; anchors are hidden from its heads for the causal check.
    window
        Largest distance that WAAD counts (W), in tokens.
    extremes
        Share of the heads that are local, and that are global.
    peaks
        Share of a prompt's tokens that count as peaks.
    lags
        Largest lag, to either side, in tokens.
    skip
        First tokens that are no peaks: the first one is a sink for other reasons.
    shifts
        Draws of the null, in which the FAI of each prompt is circularly shifted.
    causal_prompts
        Prompts of the causal check, from the first on; 0 leaves it out.
    seed
        Seed of the bootstrap over prompts, of the shifts and of the other tokens.

    Returns
    -------
    Dataset with ``distance``, ``distance_without_first`` token and ``waad_head`` (layer, head;
    tokens), ``anchor_mass`` (layer, head;
    mean weight that anchors get from later queries), ``waad`` and ``fai`` (query; first prompt),
    ``coupling`` and ``chance`` (lag; share of WAAD peaks), ``coupling_lag`` (tokens, of the
    largest coupling), ``chance_of_coupling`` (share of the draws with a coupling as large at any
    lag) and ``anchor_loss`` (condition; nats a token, the causal number). Averages carry 95 %
    intervals over prompts, ``chance`` the range of its draws. In a text that repeats itself every
    few tokens, peaks are coupled at many lags.
    """
    require(capture, NEEDS, "preplan_anchor", ("self",))
    if not predicts(capture):
        raise NotApplicable(
            "model: preplan_anchor follows tokens from earlier to later, which needs causal layers"
        )
    lengths = capture["length"].values
    if int(lengths.min()) < SHORTEST + skip:
        raise NotApplicable(
            f"prompts: prompt {int(lengths.argmin()) + 1} has {int(lengths.min())} tokens; "
            f"preplan_anchor needs {SHORTEST + skip} or more"
        )

    reach = _windowed(capture, window)
    whole, sunk = per_query(capture, "distance"), without_first.mass(capture)
    clip = float(capture.attrs.get("clip") or np.inf)
    first_dominates = without_first.first_dominates(capture)
    distances = [
        ("distance", GRID, mean(whole), "Mean attention distance", ("tokens", "sequential", 0)),
        (f"distance{without_first.SUFFIX}", GRID,
         mean(without_first.distance(whole, sunk, clip)),
         f"Mean attention distance{without_first.TITLE}", ("tokens", "sequential", 0)),
    ]  # fmt: skip
    distance = distances[first_dominates][2]
    if first_dominates:
        reach = without_first.distance(reach, sunk, window)
    influence = capture["received_later"].transpose("prompt", "layer", "head", "key").values
    influence = influence.astype(np.float64)
    size = max(int(extremes * np.isfinite(distance[0]).sum()), 1)
    typical = mean(np.moveaxis(distance, 0, -1))
    near, far = top(-typical, size), top(typical, size)
    waad, fai = _over(reach, near), _over(influence, far)
    plans, anchors = (
        [
            _peaks.highest(series[:end], peaks, skip)
            for series, end in zip(curves, lengths, strict=True)
        ]
        for curves in (waad, fai)
    )
    at_anchors = np.stack(
        [mean(weights[..., keys]) for weights, keys in zip(influence, anchors, strict=True)]
    )
    coupling = _peaks.coupled(plans, anchors, lengths, lags, skip)
    null = _peaks.chance(plans, anchors, lengths, lags, skip, shifts, seed)

    nearest, last = capture.attrs["horizon"]
    convention = (
        f"W = {window}; horizon {nearest} to {last} tokens; {size} local and {size} global heads; "
        f"peaks: top {percent(peaks)} of tokens after the first {skip}; prompts of "
        f"{length_note(capture)}{without_first.RULE if first_dominates else ''}"
    )
    results = Results(capture, seed=seed, convention=convention, source=SOURCE)
    results.add_means(
        *(reversed(distances) if first_dominates else distances),
        ("waad_head", ("layer", "head"), mean(reach), "Windowed attention distance (WAAD)",
         ("tokens", "sequential", 0, window)),
        ("anchor_mass", ("layer", "head"), at_anchors,
         "Mean weight that anchors get from later queries", SHARE),
        ("coupling", ("lag",), coupling, "WAAD peaks with an FAI peak at a lag",
         ("share of WAAD peaks", *ZERO_TO_ONE)),
    )  # fmt: skip
    lag_names = np.arange(-lags, lags + 1)
    verdict = _add_lag(results, coupling, null, lag_names)
    shown = int(lengths[0])
    results.add_all(
        ("waad", ("query",), waad[0, :shown], "WAAD of local heads", ("tokens", "sequential", 0)),
        ("fai", ("query",), fai[0, :shown], "FAI of global heads: mean weight from later queries",
         ("share", "sequential", 0)),
        convention=f"first prompt; {convention}",
    )  # fmt: skip
    coords = token_axis(capture, shown) | {"lag": [f"{lag:+d}" for lag in lag_names]}
    if causal_prompts:
        loss = _hidden(model, tokens(capture)[:causal_prompts], anchors, far, skip, seed)
        costs = loss.mean(0)
        results.add_mean(
            "anchor_loss", ("condition",), loss, "Loss with tokens hidden from global heads",
            "nats", "sequential", 0, evidence="causal",
            convention=f"loss a token on {len(loss)} prompts; {convention}",
        )  # fmt: skip
        coords["condition"] = list(CONDITIONS)
        verdict &= causal_verdict(
            loss[:, 1] - loss[:, 2],
            f"of a loss of {amount(costs[0])} nats, hiding the anchors changes "
            f"{amount(costs[1] - costs[0], '+')}, hiding as many other tokens "
            f"{amount(costs[2] - costs[0], '+')}",
        )
    kinds = {"local": [label(head) for head in near], "global": [label(head) for head in far]}
    note = without_first.dominance_note(capture).strip()
    return results.dataset(coords, verdict, note, heads_by_type=kinds)


def _windowed(capture: xr.Dataset, window: int) -> Array:
    """Return the clipped distance of every query from the weights at the offsets below W.

    What lies at W or farther counts as W, and so does what rests on a learned sink.
    """
    offsets = capture["offset"].values.tolist()
    missing = [offset for offset in range(window) if offset not in offsets]
    if missing:
        raise NotApplicable(
            f"capture: preplan_anchor with window={window} needs offset_mass at offset "
            f"{missing[0]}; capture again with offsets=range({window})"
        )
    near = np.nan_to_num(per_query(capture.sel(offset=list(range(window))), "offset_mass"))
    inside = ~np.isnan(per_query(capture, "distance"))
    reach = near @ np.arange(window) + window * np.clip(1 - near.sum(-1), 0, 1)
    return np.where(inside, reach, np.nan)


def _over(values: Array, heads: list[tuple[int, int]]) -> Array:
    """Average over some heads (prompt, position)."""
    return mean(np.stack([values[:, layer, head] for layer, head in heads], axis=-1))


def _add_lag(results: Results, coupling: Array, null: Array, lags: NDArray[np.int64]) -> Verdict:
    """Add the null, the lag of the largest coupling, and how often chance does as well."""
    convention = results.about["convention"]
    expected, excess = mean(null.T), mean(coupling.T) - mean(null.T)
    results.add_interval(
        "chance", ("lag",), (expected, *percentiles(null, 0.025)), "Coupling by chance",
        "share of WAAD peaks", *ZERO_TO_ONE,
        convention=f"{len(null)} draws, FAI of each prompt circularly shifted; {convention}",
    )  # fmt: skip
    best = int(np.nanargmax(excess))
    generator = np.random.default_rng(results.seed)
    draws = generator.integers(len(coupling), size=(1000, len(coupling)))
    drawn = np.array([lags[np.nanargmax(mean(coupling[draw].T) - expected)] for draw in draws])
    ends = np.quantile(drawn, [0.025, 0.975]) if len(coupling) > 1 else np.full(2, np.nan)
    results.add_interval(
        "coupling_lag", (), (float(lags[best]), *ends), "Lag of the coupling", "tokens",
        "diverging", float(lags[0]), float(lags[-1]),
    )  # fmt: skip
    beaten = float((np.nanmax(null - expected, axis=-1) >= excess[best] - 1e-12).mean())
    results.add(
        "chance_of_coupling", (), beaten, "Draws with a coupling as large at any lag",
        "share of draws", *ZERO_TO_ONE,
        convention=f"largest excess over all lags; {convention}",
    )  # fmt: skip
    draws_text = f"({percent(beaten)} of the draws do as well)."
    if beaten < 0.05:
        text = f"FAI peaks stand {lags[best]:+d} tokens from WAAD peaks beyond chance"
        return Verdict("supported", f"{text} {draws_text}")
    return Verdict("not_supported", f"No coupling beyond chance at any lag {draws_text}")


def _hidden(
    model: Model,
    ids: list[list[int]],
    anchors: list[NDArray[np.int64]],
    heads: list[tuple[int, int]],
    skip: int,
    seed: int,
) -> Array:
    """Measure the loss with anchors, and with other tokens, hidden from some heads."""
    generator = np.random.default_rng(seed)
    losses = []
    for prompt, positions in zip(ids, anchors, strict=False):
        rest = np.setdiff1d(np.arange(skip, len(prompt)), positions)
        others = generator.permutation(rest)[: len(positions)]
        hiding = [
            (KnockOut(heads=tuple(heads), keys=tuple(map(int, keys))),)
            for keys in (positions, others)
        ]
        losses.append(contrast(model, [prompt], [(), *hiding])[0])
    return np.stack(losses)

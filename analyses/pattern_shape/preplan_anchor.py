"""Rhythm: where heads reach back, which tokens are looked at later, and how the two keep time.

Windowed average attention distance, ``WAAD_t = Σ_s P_ts min(t − s, W)`` averaged over local heads,
peaks where a query reaches out of its neighbourhood (preplan). Future attention influence, the mean
weight that a token gets from later queries inside a horizon, averaged over global heads, peaks at
tokens that the text keeps coming back to (anchors). Local heads are those of the smallest mean
distance, global ones of the largest. The coupling at a lag is the share of WAAD peaks with an FAI
peak that many tokens later; by chance it is what stays when each prompt's FAI is shifted round. The
causal number: the loss with the anchors hidden from the global heads, and with as many others.

Source: Attention Illuminates LLM Reasoning: The Preplan-and-Anchor Rhythm (Li et al.).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.causal_check import Progress
from headscope.analyses._interventions.next_token_loss import contrast, predicts, tokens, verdict
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import (
    averaged,
    dataset,
    interval,
    label,
    require,
    top,
    variable,
)
from headscope.analyses._stats.bootstrap import percentiles
from headscope.analyses._stats.length_trend import mean, per_query, stated
from headscope.analyses.pattern_shape import _peaks
from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

NEEDS = ("offset_mass", "received_later", "distance")
OFFSETS = tuple(range(10))

SOURCE = "Attention Illuminates LLM Reasoning (Li et al.)"
CONDITIONS = ("intact", "anchors hidden", "as many other tokens hidden")
SHORTEST = 8
Array = NDArray[np.float64]


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    window: int = 10,
    extremes: float = 0.3,
    peaks: float = 0.2,
    lags: int = 8,
    skip: int = 1,
    shifts: int = 500,
    causal_prompts: int = 6,
    seed: int = 0,
    progress: Progress | None = None,
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
        Draws of the null, in which the FAI of each prompt is shifted round.
    causal_prompts
        Prompts of the causal check, from the first on; 0 leaves it out.
    seed
        Seed of the bootstrap over prompts, of the shifts and of the other tokens.
    progress
        Called with (done, total) prompts of the causal check.

    Returns
    -------
    Dataset with ``distance`` and ``waad_head`` (layer, head; tokens), ``anchor_mass`` (layer, head;
    mean weight that anchors get from later queries), ``waad`` and ``fai`` (query; first prompt),
    ``coupling`` and ``chance`` (lag; share of WAAD peaks), ``coupling_lag`` (tokens, of the
    largest coupling), ``chance_of_coupling`` (share of the draws with a coupling as large at any
    lag) and ``anchor_loss`` (condition; nats a token, the causal number). Averages carry 95 %
    intervals over prompts, ``chance`` the range of its draws. In a text that repeats itself every
    few tokens, peaks are coupled at many lags.

    Raises
    ------
    NotApplicable
        When the capture lacks a statistic or offset, the model is not causal, a prompt has fewer
        than 8 tokens, or an option is out of range.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> given = [list(range(40)), list(range(2, 42))]
    >>> execute("preplan_anchor", model, given, options={"causal_prompts": 0})["coupling"].dims
    ('lag',)
    """
    options.at_least("window", window, 2)
    options.between("extremes", extremes, 0.01, 0.5)
    options.between("peaks", peaks, 0.01, 0.5)
    for name, value, low in (("lags", lags, 1), ("skip", skip, 0), ("shifts", shifts, 20)):
        options.at_least(name, value, low)
    options.at_least("causal_prompts", causal_prompts, 0)
    require(capture, NEEDS, "preplan_anchor")
    options.one_text(capture.attrs.get("attention", "self"), "preplan_anchor")
    if not predicts(capture):
        raise NotApplicable(
            "model: the rhythm looks from earlier to later, which needs causal layers"
        )
    lengths = capture["length"].values
    if int(lengths.min()) < SHORTEST + skip:
        raise NotApplicable(
            f"prompts: prompt {int(lengths.argmin()) + 1} has {int(lengths.min())} tokens; "
            f"the rhythm needs {SHORTEST + skip} or more"
        )

    reach = _windowed(capture, window)
    distance = mean(per_query(capture, "distance"))
    influence = capture["received_later"].transpose("prompt", "layer", "head", "key").values
    influence = influence.astype(np.float64)
    size, typical = max(int(extremes * np.isfinite(distance[0]).sum()), 1), mean(distance.T).T
    local, far = top(-typical, size), top(typical, size)
    waad, fai = _over(reach, local), _over(influence, far)
    plans, anchors = (
        [_peaks.highest(one[:end], peaks, skip) for one, end in zip(each, lengths, strict=True)]
        for each in (waad, fai)
    )
    coupling = _peaks.coupled(plans, anchors, lengths, lags, skip)
    null = _peaks.chance(plans, anchors, lengths, lags, skip, shifts, seed)

    near, last = capture.attrs["horizon"]
    convention = (
        f"W = {window}; horizon {near} to {last} tokens; {size} local and {size} global heads; "
        f"peaks: top {peaks:.0%} of tokens after the first {skip}; prompts of {stated(capture)}"
    )
    at_anchors = np.stack(
        [mean(one[..., places]) for one, places in zip(influence, anchors, strict=True)]
    )
    variables = {
        **averaged(
            "distance", ("layer", "head"), distance, "Mean distance looked back", "tokens",
            "sequential", 0, seed=seed, convention=convention, source=SOURCE,
        ),
        **averaged(
            "waad_head", ("layer", "head"), mean(reach), "Windowed attention distance (WAAD)",
            "tokens", "sequential", 0, window, seed=seed, convention=convention, source=SOURCE,
        ),
        **averaged(
            "anchor_mass", ("layer", "head"), at_anchors,
            "Mean weight that anchors get from later queries", "share", "sequential", 0, 1,
            seed=seed, convention=convention, source=SOURCE,
        ),
        **averaged(
            "coupling", ("lag",), coupling, "WAAD peaks with an FAI peak at a lag",
            "share of WAAD peaks", "sequential", 0, 1, seed=seed, convention=convention,
            source=SOURCE,
        ),
    }  # fmt: skip
    steps = np.arange(-lags, lags + 1)
    variables |= _null(null, convention)
    variables |= _lag(coupling, null, steps, convention, seed)
    first = int(lengths[0])
    for name, values, title, units in (
        ("waad", waad, "WAAD of local heads", "tokens"),
        ("fai", fai, "FAI of global heads: mean weight from later queries", "share"),
    ):
        variables[name] = variable(
            ("query",), values[0, :first], title, units, "sequential", 0, None,
            convention=f"first prompt; {convention}", source=SOURCE,
        )  # fmt: skip
    coords: dict[str, Any] = {"query": np.arange(first), "lag": [f"{step:+d}" for step in steps]}
    if "token" in capture.coords:
        words = capture["token"].transpose("prompt", "query").values[0, :first]
        coords["token"] = ("query", words.astype(str))
    note = _told(variables)
    if causal_prompts:
        ids = tokens(capture)[:causal_prompts]
        loss = _hidden(model, ids, anchors, far, skip, seed, progress)
        coords["condition"] = list(CONDITIONS)
        costs = loss.mean(0)
        note += (
            f" {verdict(loss[:, 2], loss[:, 1], seed)}: loss {costs[0]:.3f}, with the anchors "
            f"hidden {costs[1]:.3f}, with as many other tokens hidden {costs[2]:.3f} nats."
        )
        variables |= averaged(
            "anchor_loss", ("condition",), loss, "Loss with tokens hidden from global heads",
            "nats", "sequential", 0, seed=seed, source=SOURCE, evidence="causal",
            convention=f"loss a token on {len(loss)} prompts; {convention}",
        )  # fmt: skip
    named = {"local": [label(one) for one in local], "global": [label(one) for one in far]}
    return dataset(
        capture, variables, coords, convention=convention, heads_by_type=named, note=note
    )


def _windowed(capture: xr.Dataset, window: int) -> Array:
    """Return the clipped distance of every query from the weights at the offsets below W.

    What lies at W or farther counts as W, and so does what rests on a learned sink.
    """
    offsets = capture["offset"].values.tolist()
    missing = [offset for offset in range(window) if offset not in offsets]
    if missing:
        raise NotApplicable(
            f"capture: rhythm with window={window} needs offset_mass at offset {missing[0]}; "
            f"capture again with offsets=range({window})"
        )
    chosen = capture["offset_mass"].sel(offset=list(range(window)))
    near = np.nan_to_num(
        chosen.transpose("prompt", "layer", "head", "query", "offset").values.astype(np.float64)
    )
    inside = ~np.isnan(per_query(capture, "distance"))
    found = near @ np.arange(window) + window * np.clip(1 - near.sum(-1), 0, 1)
    return np.where(inside, found, np.nan)


def _over(values: Array, chosen: list[tuple[int, int]]) -> Array:
    """Average over some heads (prompt, position)."""
    return mean(np.stack([values[:, layer, head] for layer, head in chosen], axis=-1))


def _null(null: Array, convention: str) -> dict[str, xr.Variable]:
    lower, upper = percentiles(null, 0.025)
    return interval(
        "chance", ("lag",), mean(null.T), lower, upper, "Coupling by chance",
        "share of WAAD peaks", "sequential", 0, 1,
        convention=f"{len(null)} draws, FAI of each prompt shifted round; {convention}",
        source=SOURCE,
    )  # fmt: skip


def _lag(
    coupling: Array, null: Array, steps: NDArray[np.int64], convention: str, seed: int
) -> dict[str, xr.Variable]:
    """Return the lag of the largest coupling, and how often chance does as well at any lag."""
    expected = mean(null.T)
    excess = mean(coupling.T) - expected
    best = int(np.nanargmax(excess))
    draws = np.random.default_rng(seed).integers(len(coupling), size=(1000, len(coupling)))
    lags = np.array([steps[np.nanargmax(mean(coupling[one].T) - expected)] for one in draws])
    ends = np.quantile(lags, [0.025, 0.975]) if len(coupling) > 1 else np.full(2, np.nan)
    beaten = float((np.nanmax(null - expected, axis=-1) >= excess[best] - 1e-12).mean())
    return {
        **interval(
            "coupling_lag", (), float(steps[best]), ends[0], ends[1], "Lag of the coupling",
            "tokens", "diverging", float(steps[0]), float(steps[-1]), convention=convention,
            source=SOURCE,
        ),
        "chance_of_coupling": variable(
            (), beaten, "Draws with a coupling as large at any lag", "share of draws", "sequential",
            0, 1, convention=f"largest excess over all lags; {convention}", source=SOURCE,
        ),
    }  # fmt: skip


def _told(variables: dict[str, xr.Variable]) -> str:
    lag, beaten = (
        float(variables["coupling_lag"].values),
        float(variables["chance_of_coupling"].values),
    )
    told = f"FAI peaks stand {lag:+.0f} tokens from WAAD peaks beyond chance"
    told = told if beaten < 0.05 else "No coupling beyond chance at any lag"
    return f"{told} ({beaten:.1%} of the draws do as well)."


def _hidden(
    model: Model,
    ids: list[list[int]],
    anchors: list[NDArray[np.int64]],
    heads: list[tuple[int, int]],
    skip: int,
    seed: int,
    progress: Progress | None,
) -> Array:
    """Measure the loss with anchors, and with other tokens, hidden from some heads."""
    from headscope.probes.interventions import KnockOut

    generator = np.random.default_rng(seed)
    found = []
    for number, (one, places) in enumerate(zip(ids, anchors, strict=False)):
        rest = np.setdiff1d(np.arange(skip, len(one)), places)
        others = generator.permutation(rest)[: len(places)]
        edits: dict[str, tuple[KnockOut, ...]] = {CONDITIONS[0]: ()} | {
            condition: (KnockOut(heads=tuple(heads), keys=tuple(int(each) for each in keys)),)
            for condition, keys in zip(CONDITIONS[1:], (places, others), strict=True)
        }
        found.append(contrast(model, [one], edits)[0])
        if progress is not None:
            progress(number + 1, len(ids))
    return np.stack(found)

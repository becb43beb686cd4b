"""Emergence: at which step of training each head gets its role, and in which order.

A head emerges where its score crosses half of its final value, or a threshold, and stays there.

Sources: Musat, Mechanism and Emergence of Stacked Attention Heads; Olsson et al. (2209.11895).
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import Results, label
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses.series.joined import DIM
from headscope.kernels.errors import InvalidInput

# What of the provenance of a timeline goes with its emergence.
KEPT = ("analysis", "model", "options", "task", "seed", "n_prompts", "prompts_sha256", "headscope")
MEASURES = {
    "final": "{share:g} of the final value",
    "change": "the first value plus {share:g} of the change to the final one",
}


def emergence(
    timeline: xr.Dataset,
    score: str,
    *,
    of: str = "final",
    share: float = 0.5,
    threshold: float | None = None,
    least: float = 0.2,
) -> xr.Dataset:
    """Find the training step at which each entry of a score emerges, and in which order.

    The level is crossed from the checkpoint on after which no value is on the other side of it;
    between the two checkpoints the step is interpolated on a line.

    Parameters
    ----------
    timeline
        What `timeline` returned.
    score
        One of its variables, for example ``induction`` of ``head_types``.
    of
        ``final``: the level is a share of the final value, for scores that rise from about 0;
        ``change``: of the way from the first to the final value, also for what falls, such as a
        loss.
    share
        The share, above 0 and up to 1; 0.5 is half-height.
    threshold
        A level for all, in the units of the score, instead.
    least
        What does not reach this at the end (with ``of="change"``: does not change by this much)
        has not emerged. In units of the score.

    Returns
    -------
    ``emergence_step`` (the other dims of the score; steps, NaN where it does not emerge) with
    ``_lower`` and ``_upper``: the last checkpoint at which the score was surely on the first side
    and the first at which it surely was across, by its 95 % interval where it has one. At the upper
    end NaN where no checkpoint is sure. ``emergence_order`` (1 for the first) and ``final_value``.
    The attribute ``order`` lists what emerged, in order.

    Examples
    --------
    >>> values = ("checkpoint", [0.0, 0.1, 0.9, 1.0])
    >>> grown = xr.Dataset({"score": values}, {"step": ("checkpoint", [0, 100, 200, 300])})
    >>> float(emergence(grown, "score")["emergence_step"])
    150.0
    """
    options.OneOf(MEASURES).check("of", of)
    options.Between(0, 1).check("share", share)
    scores = [str(name) for name, array in timeline.items() if DIM in array.dims]
    if score not in scores:
        raise InvalidInput(f"score: the timeline holds no {score!r}; it has {', '.join(scores)}")
    array = timeline[score]
    rest = [dim for dim in array.dims if dim != DIM]
    steps = np.asarray(timeline["step"].values, dtype=np.float64)
    values = _rows(array, rest)
    lower, upper = values, values
    if f"{score}_lower" in timeline and f"{score}_upper" in timeline:
        lower, upper = (_rows(timeline[f"{score}_{end}"], rest) for end in ("lower", "upper"))
    rows = [
        _crossing(steps, *curve, of, share, threshold, least)
        for curve in zip(values, lower, upper, strict=True)
    ]
    shape = [array.sizes[dim] for dim in rest]
    step, low, high, final = (np.reshape(column, shape) for column in np.array(rows).T)
    title = str(array.attrs.get("long_name", score))
    level = f"{threshold:g}" if threshold is not None else MEASURES[of].format(share=share)
    convention = f"level: {level}; {least:g} is the least that counts; linear between checkpoints"
    dims = [str(dim) for dim in rest]
    evidence = {"evidence": array.attrs["evidence"]} if "evidence" in array.attrs else {}
    results = Results(timeline, **evidence)
    results.add_interval(
        "emergence_step", dims, (step, low, high), f"Emergence of: {title}", "steps", "sequential",
        float(steps[0]), float(steps[-1]), convention=convention,
    )  # fmt: skip
    results.add(
        "emergence_order", dims, _order(step), f"Order of emergence of: {title}", "rank",
        "sequential", 1, convention=f"1 for the first; {convention}",
    )  # fmt: skip
    units = str(array.attrs.get("units", ""))
    results.add("final_value", dims, final, f"At the last checkpoint: {title}", units)
    emerged = xr.Dataset(
        results.variables,
        coords={name: values for name, values in array.coords.items() if DIM not in values.dims},
    )
    order = _listed(emerged, array, rest)
    return emerged.assign_attrs(
        **{key: timeline.attrs[key] for key in KEPT if key in timeline.attrs},
        score=score,
        order=order,
        convention=convention,
        note=_note(order, title),
    )


def _rows(array: xr.DataArray, rest: list[Hashable]) -> Array:
    """Return one row an entry, one column a checkpoint."""
    values = np.asarray(array.transpose(*rest, DIM).values, dtype=np.float64)
    return values.reshape(-1, values.shape[-1])


def _crossing(
    steps: Array,
    values: Array,
    lower: Array,
    upper: Array,
    of: str,
    share: float,
    threshold: float | None,
    least: float,
) -> tuple[float, float, float, float]:
    """Return step, lower end, upper end and final value of one curve."""
    measured = np.flatnonzero(~np.isnan(values))
    nothing = (np.nan, np.nan, np.nan)
    if len(measured) < 2:
        return *nothing, np.nan
    steps, values = steps[measured], values[measured]
    # Where a score has no interval at a checkpoint, it stands for itself.
    lower = np.where(np.isnan(lower[measured]), values, lower[measured])
    upper = np.where(np.isnan(upper[measured]), values, upper[measured])
    first, final = float(values[0]), float(values[-1])
    if (abs(final - first) if of == "change" else final) < least:
        return *nothing, final
    begin = first if of == "change" else 0.0
    level = begin + share * (final - begin) if threshold is None else threshold
    if of == "change" and final < first:
        values, lower, upper, level = -values, -upper, -lower, -level
    if values[-1] < level:
        return *nothing, final
    below = np.flatnonzero(values < level)
    sure = np.flatnonzero(upper < level)
    across = int(below[-1]) + 1 if len(below) else 0
    safe = [at for at in range(across, len(steps)) if lower[at] >= level]
    last = [int(at) for at in sure if at < across]
    step = float(steps[across])
    if across:
        before, after = values[across - 1], values[across]
        part = (level - before) / (after - before)
        step = float(steps[across - 1] + part * (steps[across] - steps[across - 1]))
    low = float(steps[last[-1]]) if last else float(steps[0])
    return step, low, float(steps[safe[0]]) if safe else np.nan, final


def _order(steps: Array) -> Array:
    measured = np.sort(steps[~np.isnan(steps)])
    ranks = np.searchsorted(measured, steps, side="left") + 1.0
    return np.where(np.isnan(steps), np.nan, ranks)


def _listed(emerged: xr.Dataset, array: xr.DataArray, rest: list[Hashable]) -> list[dict[str, Any]]:
    """List what emerged, first to last."""
    rows = []
    for index in np.argwhere(emerged["emergence_step"].notnull().values).tolist():
        entry = emerged.isel(dict(zip(rest, index, strict=True)))
        upper = float(entry["emergence_step_upper"])
        rows.append(
            {
                "name": _name(array, rest, index),
                "step": round(float(entry["emergence_step"]), 2),
                "lower": float(entry["emergence_step_lower"]),
                "upper": None if np.isnan(upper) else upper,
                "final": round(float(entry["final_value"]), 4),
            }
        )
    return sorted(rows, key=lambda row: (row["step"], row["name"]))


def _name(array: xr.DataArray, rest: list[Hashable], indices: Sequence[int]) -> str:
    at = {
        dim: array[dim].values[index] if dim in array.coords else index
        for dim, index in zip(rest, indices, strict=True)
    }
    parts = []
    if "layer" in at and "head" in at:
        parts.append(label((int(at.pop("layer")), int(at.pop("head")))))
    return ", ".join(parts + [str(value) for value in at.values()])


def _note(order: list[dict[str, Any]], title: str) -> str:
    if not order:
        return f"{title}: nothing emerges."
    steps = ", ".join(f"{row['name'] or 'it'} at step {row['step']:g}" for row in order[:8])
    more = f" and {len(order) - 8} more" if len(order) > 8 else ""
    return f"{title}: {steps}{more}."

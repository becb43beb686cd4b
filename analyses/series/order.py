"""Order of emergence: which of several scores rises first, and whether that is sure.

Scores of one training run are ordered by its checkpoints: a score is surely earlier where
at one checkpoint it is across a level, and the other below. Several runs are ordered by the
interval of the lag over runs.

Sources: Musat, Mechanism and Emergence of Stacked Attention Heads (2411.12118); Olsson et al.
(2209.11895).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from headscope.analyses._runtime.options import AtLeast
from headscope.analyses._runtime.results import GRID, Results
from headscope.analyses._runtime.verdict import Verdict
from headscope.analyses._stats.bootstrap import Array, t_interval
from headscope.analyses.series.emergence import KEPT, emergence
from headscope.analyses.series.joined import DIM
from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.kernels.formatting import amount

# Shares of the whole change at which scores are compared; the middle one is half-height.
SHARES = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7)
HALF = SHARES.index(0.5)
# With fewer runs an interval over them says little.
LEAST_RUNS = 3
INTACT = "intact"


def order(
    timelines: xr.Dataset | Sequence[xr.Dataset],
    scores: Sequence[str] | None = None,
    *,
    least: float = 0.2,
) -> xr.Dataset:
    """Order scores by the step at which the first entry of each emerges, with a verdict.

    Parameters
    ----------
    timelines
        What `timeline` returned; or several of the same analysis, one a run of training.
    scores
        Variables to order; default: every score of heads, and the accuracy of the intact model.
        A variable with the condition ``intact`` stands for that condition.
    least
        What changes by less has not emerged. In units of the score.

    Returns
    -------
    Along ``score``, first to last: ``emergence_step`` (steps; half of the change of the entry that
    gets there first) and ``lag`` (steps behind the score before it), with ``_lower`` and
    ``_upper``: of one run, by its checkpoints (see `emergence`); of several, the 95 % t interval
    over runs. ``in_order`` (share): of the levels at which the checkpoints of one run surely show
    this order, or of the runs that have it. One run also has ``progress`` (checkpoint, score): the
    share of its change that the first entry has gone through. The attribute ``order`` lists the
    scores; ``verdict`` is ``too_few`` where two neighbours cannot be ordered and
    ``disagreement`` where some level shows them the other way round.

    Examples
    --------
    >>> early, late = [0.0, 0.9, 1.0, 1.0], [0.0, 0.1, 0.2, 1.0]
    >>> steps = ("checkpoint", [0, 100, 200, 300])
    >>> values = {"late": ("checkpoint", late), "early": ("checkpoint", early)}
    >>> result = order(xr.Dataset(values, {"step": steps}), ["late", "early"])
    >>> result["score"].values.tolist(), result.attrs["verdict"]
    (['early', 'late'], 'supported')
    """
    AtLeast(0).check("least", least)
    runs = [timelines] if isinstance(timelines, xr.Dataset) else list(timelines)
    if not runs:
        raise InvalidInput("timelines: none given; give what timeline returned")
    names = _scores(runs[0]) if scores is None else list(scores)
    entries = [{name: _first(run, name, least) for name in names} for run in runs]
    tables = [
        {name: entry for name, entry in table.items() if entry is not None} for table in entries
    ]
    names = [name for name in names if all(name in table for table in tables)]
    if len(names) < 2:
        raise NotApplicable(
            f"scores: {len(names)} emerge{'s' * (len(names) == 1)} in every run; an order needs "
            "two (give others, or a smaller least)"
        )
    # (run, score, share, 3): step, lower and upper end.
    steps = np.array([[table[name][1] for name in names] for table in tables])
    ranked = np.argsort(steps[:, :, HALF, 0].mean(0), kind="stable")
    names, steps = [names[index] for index in ranked], steps[:, ranked]
    return _result(runs, tables, names, steps)


def _result(
    runs: Sequence[xr.Dataset], tables: Sequence[dict[str, Any]], names: Sequence[str], steps: Array
) -> xr.Dataset:
    distinct = _lags(steps)
    states = [_state(steps[:, index : index + 2]) for index in range(len(names) - 1)]
    if len(runs) == 1:
        half, lag = steps[0, :, HALF].T, distinct[0, :, HALF].T
        sure = (distinct[0, :, :, 1] >= 0).mean(-1)
        convention = "ends: last checkpoint surely below, first surely across half of the change"
    else:
        half = np.stack(t_interval(steps[:, :, HALF, 0], -np.inf, np.inf))
        lag = np.stack(t_interval(distinct[:, :, HALF, 0], -np.inf, np.inf))
        sure = (distinct[:, :, HALF, 0] > 0).mean(0)
        convention = f"mean over {len(runs)} runs of training, 95 % t interval"
    results = Results(runs[0], convention=convention)
    results.add_interval("emergence_step", ["score"], half, "Step of emergence", "steps")
    nothing = np.full((3, 1), np.nan)
    results.add_interval(
        "lag", ["score"], np.hstack([nothing, lag]), "Steps behind the score before it", "steps",
        "diverging",
    )  # fmt: skip
    results.add(
        "in_order", ["score"], np.append(np.nan, sure), "Shown in this order", "share",
        "sequential", 0, 1, convention="of levels (one run) or of runs",
    )  # fmt: skip
    coords: dict[str, Any] = {"score": list(names)}
    if len(runs) == 1:
        curves = np.stack([tables[0][name][2] for name in names], axis=-1)
        results.add_interval(
            "progress", [DIM, "score"], curves, "Share of its change gone through", "share",
            "sequential", 0, 1,
        )  # fmt: skip
        coords |= {name: runs[0][name] for name in (DIM, "step") if name in runs[0].coords}
    entries = [[str(table[name][0]) for table in tables] for name in names]
    listed = [
        {"score": name, "entries": first, "step": round(float(half[0, index]), 2),
         "lower": _rounded(half[1, index]), "upper": _rounded(half[2, index])}
        for index, (name, first) in enumerate(zip(names, entries, strict=True))
    ]  # fmt: skip
    pairs = [
        Verdict(state, _sentence(listed[index], listed[index + 1], state, sure[index], len(runs)))
        for index, state in enumerate(states)
    ]
    verdict = pairs[0]
    for pair in pairs[1:]:
        verdict &= pair
    return xr.Dataset(results.variables, coords=coords).assign_attrs(
        **{key: runs[0].attrs[key] for key in KEPT if key in runs[0].attrs},
        order=listed,
        pairs=[pair.state for pair in pairs],
        runs=len(runs),
        convention=convention,
        verdict=verdict.state,
        verdict_text=verdict.text,
        note=verdict.text,
    )


def _scores(timeline: xr.Dataset) -> list[str]:
    return [
        str(name)
        for name, array in timeline.items()
        if "interval_of" not in array.attrs
        and (set(array.dims) == {DIM, *GRID} or INTACT in _conditions(array))
    ]


def _conditions(array: xr.DataArray) -> list[Any]:
    return array["condition"].values.tolist() if "condition" in array.coords else []


def _first(timeline: xr.Dataset, score: str, least: float) -> tuple[str, Array, Array] | None:
    """Find the entry that emerges first: its name, steps (share, 3), progress (3, checkpoint).

    The steps at every share are those of the entry that is first there, each end by itself: the
    score is surely below where all entries are, and surely across where one is.
    """
    data = timeline
    if score in timeline and INTACT in _conditions(timeline[score]):
        data = timeline.sel(condition=INTACT, drop=True)
    emerged = [emergence(data, score, of="change", share=share, least=least) for share in SHARES]
    listed = emerged[HALF].attrs["order"]
    if not listed:
        return None
    ends = [f"emergence_step{end}" for end in ("", "_lower", "_upper")]
    steps = np.array([[_least(result[end]) for end in ends] for result in emerged])
    index = np.unravel_index(
        np.nanargmin(emerged[HALF]["emergence_step"]), emerged[HALF]["emergence_step"].shape
    )
    dims = emerged[HALF]["emergence_step"].dims
    at = dict(zip(dims, map(int, index), strict=True))
    curve = data[score].isel(at)
    sides = [data.get(f"{score}_{end}", data[score]).isel(at) for end in ("lower", "upper")]
    begin = float(curve[0])
    change = float(curve[-1]) - begin
    progress = np.array([(values.values - begin) / change for values in (curve, *sides)])
    progress[1:] = np.sort(progress[1:], axis=0)
    return listed[0]["name"], steps, progress


def _least(ends: xr.DataArray) -> float:
    present = ends.values[~np.isnan(ends.values)]
    return float(present.min()) if len(present) else np.nan


def _lags(steps: Array) -> Array:
    """Return by how much each score comes after the one before (run, score, share, 3)."""
    before, after = steps[:, :-1], steps[:, 1:]
    crossed = np.stack([before[..., 0], before[..., 2], before[..., 1]], axis=-1)
    return np.asarray(after - crossed)


def _state(steps: Array) -> Any:
    """Conclude on two scores (run, 2, share, 3) of which the first has the smaller mean step."""
    if len(steps) == 1:
        earlier, later = ((_lags(pair)[0, 0, :, 1] >= 0).any() for pair in (steps, steps[:, ::-1]))
        return "disagreement" if later else "supported" if earlier else "too_few"
    if len(steps) < LEAST_RUNS:
        return "too_few"
    lag = _lags(steps)[:, 0, HALF, 0]
    return "supported" if t_interval(lag, -np.inf, np.inf)[1] > 0 else "not_supported"


def _rounded(end: float) -> float | None:
    return None if np.isnan(end) else round(float(end), 2)


def _sentence(
    before: dict[str, Any], after: dict[str, Any], state: str, sure: float, runs: int
) -> str:
    first, second = (
        f"{row['score']} ({_entry(row)}step {amount(row['step'])})" for row in (before, after)
    )
    if runs > 1:
        count = f"in {round(sure * runs)} of {runs} runs"
        certainty = {"supported": "surely", "too_few": "too few runs to tell"}.get(
            state, "not surely"
        )
        return f"{first} before {second}, {count}: {certainty}."
    levels = f"{round(sure * len(SHARES))} of {len(SHARES)} levels"
    return {
        "supported": f"{first} surely before {second}, at {levels}.",
        "too_few": f"{first} and {second}: the checkpoints lie too far apart to tell.",
        "disagreement": f"{first} and {second}: levels do not agree which comes first.",
    }[state]


def _entry(row: dict[str, Any]) -> str:
    names = dict.fromkeys(name for name in row["entries"] if name)
    return f"{'/'.join(names)}, " if names else ""

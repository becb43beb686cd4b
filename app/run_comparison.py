"""Two runs held against each other, as the command line and the dashboard show it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from headscope.kernels.errors import InvalidInput

if TYPE_CHECKING:
    from headscope.probes.storage.run_folder import Run

# Name under which the statistics of a run's capture are scores, too.
CAPTURE = "capture"
Pair = tuple[xr.Dataset, xr.Dataset, str]
"""The results of both sides, and the name of the variable that is compared."""


def shared(first: Mapping[str, xr.Dataset], second: Mapping[str, xr.Dataset]) -> dict[str, Pair]:
    """List the scores of heads that the results of two runs share, by ``analysis.score``."""
    return {
        f"{analysis}.{name}": (result, second[analysis], str(name))
        for analysis, result in first.items()
        if analysis != CAPTURE and analysis in second
        for name in result.data_vars
        if set(result[name].dims) == {"layer", "head"}
        and name in second[analysis]
        and "interval_of" not in result[name].attrs
    }


def pairs(runs: tuple[Run, Run], scores: Sequence[str] | None) -> dict[str, Pair]:
    """List what is compared by score: those that are named, ``capture.NAME`` for a statistic."""
    first, second = ({CAPTURE: run.capture, **run.results()} for run in runs)
    if scores is None:
        return shared(first, second)
    by_score = {}
    for score in scores:
        analysis, _, name = score.partition(".")
        for results, run in zip((first, second), runs, strict=True):
            if analysis not in results or name not in results[analysis]:
                raise InvalidInput(
                    f"--score: {run.path} has no {score!r}; headscope analyze makes it"
                )
        by_score[score] = first[analysis], second[analysis], name
    return by_score


def compare_score(
    score: str, pair: Pair, top: int, across: Collection[str] = ()
) -> tuple[xr.Dataset, dict[str, Any]]:
    """Compare one score: the differences, and their summary as JSON can hold it.

    ``top`` is the number of heads of either circuit whose overlap is stated, ``across`` names
    fields that may differ. Heads that changed most come first.
    """
    from headscope.analyses.comparison import compare, from_result, overlap

    first, second, name = pair
    change = compare(first, second, [name], across=across)
    ends = {"difference": name, "lower": f"{name}_lower", "upper": f"{name}_upper"}
    values = change[name].values
    order = np.argsort(-np.nan_to_num(np.abs(values)), axis=None, kind="stable")
    heads = [divmod(int(index), values.shape[1]) for index in order]
    changed = change.attrs["changed"][name]
    pairing = change[name].attrs["pairing"]
    row: dict[str, Any] = {
        "score": score,
        "units": change[name].attrs["units"],
        "pairing": pairing,
        "agreement": _number(change[f"{name}_agreement"].item()),
        "changed": changed,
        "heads": [
            {
                "head": f"L{layer}H{head}",
                **{end: _number(change[key].values[layer, head]) for end, key in ends.items()},
            }
            for layer, head in heads
        ],
        "summary": f"{len(changed)} of {int(np.isfinite(values).sum())} intervals leave out 0 "
        f"({pairing}).",
    }
    if set(first[name].dims) > {"prompt", "layer", "head"}:
        return change, row
    if not bool((_has_value(first[name]) == _has_value(second[name])).all()):
        row["summary"] += f" The top {top} are not compared: other heads were measured."
    else:
        common = overlap(*(from_result(side, name, top) for side in (first, second)))
        row["top"] = {
            "heads": top,
            "shared": common.attrs["shared_heads"],
            "p_value": float(common["p_value"]),
        }
    return change, row


def _has_value(score: xr.DataArray) -> xr.DataArray:
    """Mark the heads that have a value."""
    return (
        score.notnull()
        .any([dim for dim in score.dims if dim == "prompt"])
        .drop_vars(("layer", "head"), errors="ignore")
    )


def record(runs: Sequence[tuple[Path, str]], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return comparisons as the content of a JSON file; a run is its path and its model."""
    entries = [{"path": str(path), "model": model} for path, model in runs]
    return {"runs": entries, "scores": list(rows)}


def _number(value: Any) -> float | None:
    """Return a number as JSON can hold it, which has no NaN."""
    number = float(value)
    return number if math.isfinite(number) else None

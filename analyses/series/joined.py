"""Joined results: those of many checkpoints as one Dataset with the dim ``checkpoint``."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from headscope.analyses._runtime.verdict import SEVERITY
from headscope.analyses.series.state import State
from headscope.kernels.errors import InvalidInput

DIM = "checkpoint"
# What is said of the checkpoints whose verdict has this state.
ALARMS = {
    "disagreement": "Disagreement",
    "too_few": "Too few to tell",
    "not_supported": "Not supported",
}


def join(
    states: Sequence[State], results: Mapping[str, xr.Dataset], failed: Mapping[str, str]
) -> xr.Dataset:
    """Join results by label; a checkpoint without one is missing (NaN), never 0.

    Variables whose other dims or coordinates differ between checkpoints cannot be joined; the
    attribute ``left_out`` names them.
    """
    failed = dict(failed)
    good = _comparable(results, failed)
    if not good:
        label, reason = next(iter(failed.items()))
        raise InvalidInput(f"{reason} (at {label}; no checkpoint of {len(states)} has a result)")
    first = next(iter(good.values()))
    reasons = {str(name): _obstacle(str(name), list(good.values())) for name in first.data_vars}
    left_out = {name: reason for name, reason in reasons.items() if reason}
    variables = {name: _stack(name, states, good) for name in reasons if name not in left_out}
    used = {dim for array in variables.values() for dim in array.dims}
    coords = {
        name: values
        for name, values in first.coords.items()
        if set(values.dims) <= used
        and all(name in other.coords for other in good.values())
        and all(values.equals(other.coords[name]) for other in good.values())
    }
    revisions = [
        str(good[state.label].attrs.get("revision", "")) if state.label in good else ""
        for state in states
    ]
    joined = xr.Dataset(variables, coords=coords).assign_coords(
        {
            DIM: [state.label for state in states],
            "step": (DIM, [state.step for state in states], {"long_name": "Training step"}),
            "revision": (DIM, revisions),
        }
    )
    attrs, varying = _attributes(good)
    joined.attrs = {
        **attrs,
        "model": _common([state.name for state in states]),
        "by_checkpoint": varying,
        "failed": failed,
        "left_out": left_out,
        "note": _note(states, good, failed, left_out),
    }
    verdicts = [result.attrs["verdict"] for result in good.values() if "verdict" in result.attrs]
    if verdicts:
        joined.attrs["verdict"] = min(verdicts, key=SEVERITY.index)
    return joined


def _comparable(results: Mapping[str, xr.Dataset], failed: dict[str, str]) -> dict[str, xr.Dataset]:
    """Keep the results of the same prompts and heads as the first; the others have failed."""
    good: dict[str, xr.Dataset] = {}
    for label, result in results.items():
        first = next(iter(good.values()), result)
        if result.attrs.get("prompts_sha256") != first.attrs.get("prompts_sha256"):
            failed[label] = (
                "prompts: it read others than the first checkpoint; is its tokenizer another one?"
            )
            continue
        sizes, expected = (
            {dim: dataset.sizes[dim] for dim in ("layer", "head") if dim in dataset.dims}
            for dataset in (result, first)
        )
        if sizes != expected:
            failed[label] = f"heads: it has {sizes}, the first checkpoint {expected}"
            continue
        good[label] = result
    return good


def _obstacle(name: str, results: Sequence[xr.Dataset]) -> str:
    """Return why a variable cannot be joined; empty where it can."""
    first = results[0][name]
    if first.dtype.kind not in "fiub":
        return "holds no numbers"
    for result in results[1:]:
        if name not in result:
            return "not every checkpoint has it"
        other = result[name]
        if other.dims != first.dims or other.shape != first.shape:
            return "its dims or sizes differ between checkpoints"
        for dim in first.dims:
            if dim in first.coords and not first[dim].equals(other[dim]):
                return f"its {dim} entries differ between checkpoints"
    return ""


def _stack(name: str, states: Sequence[State], good: Mapping[str, xr.Dataset]) -> xr.Variable:
    first = next(iter(good.values()))[name]
    whole = len(good) == len(states)
    kind = first.dtype if whole and first.dtype.kind == "f" else np.dtype(np.float64)
    values = np.full((len(states), *first.shape), np.nan, kind)
    for index, state in enumerate(states):
        if state.label in good:
            values[index] = good[state.label][name].values
    shared = {
        key: value
        for key, value in first.attrs.items()
        if all(result[name].attrs.get(key) == value for result in good.values())
    }
    return xr.Variable((DIM, *first.dims), values, shared)


def _attributes(good: Mapping[str, xr.Dataset]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Split the attributes into those of all checkpoints and those of each."""
    names = dict.fromkeys(str(key) for result in good.values() for key in result.attrs)
    first = next(iter(good.values())).attrs
    common = {
        name
        for name in names
        if all(result.attrs.get(name) == first.get(name) for result in good.values())
    }
    varying = {
        label: {name: value for name, value in result.attrs.items() if name not in common}
        for label, result in good.items()
    }
    return {name: first[name] for name in names if name in common and name in first}, varying


def _common(names: Sequence[str]) -> str:
    """Return the name of the series: what its checkpoints have in common, or all of them."""
    before = {re.split(r"[@/\\][^@/\\]*$", name)[0] for name in names}
    return before.pop() if len(before) == 1 else ", ".join(names)


def _note(
    states: Sequence[State],
    good: Mapping[str, xr.Dataset],
    failed: Mapping[str, str],
    left_out: Mapping[str, str],
) -> str:
    steps = f"steps {states[0].step:g} to {states[-1].step:g}"
    parts = [f"{len(good)} of {len(states)} checkpoints, {steps}."]
    for state, alarm in ALARMS.items():
        labels = [label for label, result in good.items() if result.attrs.get("verdict") == state]
        parts += [f"{alarm} at {', '.join(labels)}."] if labels else []
    parts += [f"WARNING: {label} failed: {reason}." for label, reason in failed.items()]
    parts += [f"Left out: {name} ({reason})." for name, reason in left_out.items()]
    return " ".join(parts)

"""The positions of a run's prompts where a head's statistic is largest, and its deciles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.kernels.errors import NotApplicable

ELSEWHERE = "largest_elsewhere"
TITLES = {ELSEWHERE: "Largest weight on another token than the first"}
SIDES = ("query", "key")
# Sides of a statistic of a query beside its position, with an entry a choice.
ENTRIES = ("offset", "target", "span")
COUNT = 10
DECILES = (0.9, 0.7, 0.5, 0.3, 0.1)


@dataclass(frozen=True)
class Example:
    """One position of one prompt, and what the statistic is there."""

    prompt: int
    position: int
    value: float


@dataclass(frozen=True)
class Statistic:
    """A number a position that a capture keeps: its variable, and the entry of a further dim."""

    title: str
    units: str
    variable: str
    index: dict[str, int]

    def read(self, capture: xr.Dataset, layer: int, head: int) -> NDArray[np.float64]:
        """Read it for one head (prompt, position); NaN at the first token and at padding."""
        at = {"layer": layer, "head": head, **self.index}
        if self.variable == ELSEWHERE:
            values = _largest_without_first(capture, at)
        else:
            values = _read(capture, self.variable, at)
        values[:, 0] = np.nan
        return values


def statistics(capture: xr.Dataset) -> dict[str, Statistic]:
    """List what a capture keeps for every position of every head."""
    width = int(capture.attrs.get("bin_width", 1))
    if width > 1:
        raise NotApplicable(
            f"capture: examples need a number for every token, and this run keeps means of {width}"
        )
    by_name = {}
    if {"max_weight", "first_mass"} <= set(capture.data_vars) and capture.attrs.get("first") == 1:
        by_name[ELSEWHERE] = Statistic(TITLES[ELSEWHERE], "share", ELSEWHERE, {})
    for name, array in capture.data_vars.items():
        dims = set(array.dims) - {"prompt", "layer", "head", *SIDES}
        if len(set(SIDES) & set(array.dims)) != 1 or "head" not in array.dims:
            continue
        title, units = (
            str(array.attrs.get(attribute, name)) for attribute in ("long_name", "units")
        )
        if not dims:
            by_name[str(name)] = Statistic(title, units, str(name), {})
        elif len(dims) == 1 and (dim := str(dims.pop())) in ENTRIES:
            for index, entry in enumerate(array[dim].values.tolist()):
                key = f"{name}[{entry}]"
                by_name[key] = Statistic(f"{title}: {entry}", units, str(name), {dim: index})
    return by_name


def examples(values: NDArray[np.float64]) -> tuple[list[Example], list[Example]]:
    """Find the positions of the ten largest values, and those at five deciles of all positions.

    ``values`` (prompt, position). Prompts share the ten as evenly as their number allows, so that
    one prompt does not fill them.

    >>> top, deciles = examples(np.array([[0.1, 0.9, 0.8], [0.2, np.nan, 0.3]]))
    >>> [(example.prompt, example.position) for example in top[:2]], deciles[0].value
    ([(0, 1), (0, 2)], 0.9)
    """
    present = np.argwhere(np.isfinite(values))
    sizes = values[tuple(present.T)]
    order = present[np.argsort(-sizes, kind="stable")]
    most = -(-COUNT // max(len(np.unique(present[:, 0])), 1))
    counts: dict[int, int] = {}
    top: list[Example] = []
    for prompt, position in order.tolist():
        if len(top) < COUNT and counts.get(prompt, 0) < most:
            counts[prompt] = counts.get(prompt, 0) + 1
            top.append(Example(prompt, position, float(values[prompt, position])))
    deciles = []
    for share in DECILES if len(order) else ():
        prompt, position = order[round((1 - share) * (len(order) - 1))].tolist()
        deciles.append(Example(prompt, position, float(values[prompt, position])))
    return top, deciles


def _largest_without_first(capture: xr.Dataset, at: dict[str, int]) -> NDArray[np.float64]:
    """Return the largest weight of every query on a key other than the first.

    Where the first token has the largest weight, it is the second largest, if the capture keeps
    that; else it is not known, and no more than half.
    """
    largest, first = (_read(capture, name, at) for name in ("max_weight", "first_mass"))
    second = np.full_like(largest, np.nan)
    if has_second_largest(capture):
        second = _read(capture, "topk", {**at, "rank": 1})
    return np.where(np.abs(largest - first) < 1e-6, second, largest)


def has_second_largest(capture: xr.Dataset) -> bool:
    """Return whether a capture keeps the second largest weight of every query."""
    return "topk" in capture and capture.sizes["rank"] > 1


def unknown(capture: xr.Dataset, layer: int, head: int) -> tuple[int, int]:
    """Count the positions without a value of `ELSEWHERE`, and all, the first tokens left out."""
    at = {"layer": layer, "head": head}
    largest = _read(capture, "max_weight", at)[:, 1:]
    values = _largest_without_first(capture, at)[:, 1:]
    positions = int(np.isfinite(largest).sum())
    return positions - int(np.isfinite(values).sum()), positions


def _read(capture: xr.Dataset, name: str, at: dict[str, Any]) -> NDArray[np.float64]:
    # Variables, not the whole Dataset: a capture may be a file larger than memory.
    variable = capture.variables[name].isel(at)
    side = next(dim for dim in variable.dims if dim != "prompt")
    return np.array(variable.transpose("prompt", side).values, dtype=np.float64)

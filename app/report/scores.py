"""Every number that a run has about every head, with ranks, and all of them as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import SupportsFloat

import numpy as np
import pandas as pd
import xarray as xr

from headscope import viz

GRID = ("layer", "head")
ABOVE, TOO_FEW = "above its null", "too few prompts"
ENTRIES = 8
"""Entries of a further dim that a row of the heads table has columns for."""


@dataclass(frozen=True)
class Score:
    """A variable of an analysis with dims layer and head, and the ends of its interval, if any.

    ``key`` is ``analysis.variable``, as in links and files; ``important`` the heads that the
    analysis itself calls important, where it has a null of its own.
    """

    key: str
    array: xr.DataArray
    lower: xr.DataArray | None
    upper: xr.DataArray | None
    important: frozenset[str] | None = None

    @property
    def title(self) -> str:
        """Title of what it measures."""
        return str(self.array.attrs.get("long_name", self.key))

    @property
    def is_causal(self) -> bool:
        """Whether the number comes from an intervention, not from looking."""
        return self.array.attrs.get("evidence") == "causal"

    @property
    def has_too_few(self) -> bool:
        """Whether an intervention was made on too few prompts to tell heads with an effect."""
        return self.is_causal and self.array.attrs.get("effect") == "too_few"

    @property
    def with_effect(self) -> frozenset[str]:
        """Heads that an intervention shows to have an effect: above its null, among all heads."""
        if not self.is_causal or self.has_too_few:
            return frozenset()
        if self.important is not None:
            return self.important
        return frozenset(str(self.array.attrs.get("effect_heads", "")).split())

    def effect(self, name: str) -> str:
        """Return whether a head has an effect; empty where no intervention was made."""
        if not self.is_causal:
            return ""
        if self.has_too_few:
            return TOO_FEW
        return ABOVE if name in self.with_effect else "not above its null"

    @property
    def tooltip(self) -> str:
        """Definition, range, convention and source, as far as they are known."""
        attrs = self.array.attrs
        bounds = [str(attrs[side]) for side in ("low", "high") if side in attrs]
        parts = [self.title, f"units: {attrs.get('units') or 'none'}"]
        if len(bounds) == 2:
            parts.append(f"range {bounds[0]} to {bounds[1]}")
        parts += [str(attrs[name]) for name in ("convention", "source") if attrs.get(name)]
        return ". ".join(parts)

    def ranks(self) -> xr.DataArray:
        """Rank the heads, 1 for the largest (of a diverging score the largest size)."""
        return xr.DataArray(viz.ranks(self.array), dims=GRID)

    def tied(self, layer: int, head: int) -> int:
        """Count the heads that share the rank of one, by its index in the grid, itself included."""
        ranks = self.ranks().values
        return int((ranks == ranks[layer, head]).sum())


def collect(results: Mapping[str, xr.Dataset]) -> dict[str, Score]:
    """List the scores of heads in the results of a run, in order of analysis."""
    scores = {}
    for analysis, result in results.items():
        for name in viz.variables(result):
            if set(result[name].dims) == set(GRID):
                ends = viz.interval(result, name)
                lower, upper = (None if end is None else end.transpose(*GRID) for end in ends)
                key = f"{analysis}.{name}"
                important = result.attrs.get("important_heads")
                named = None if important is None else frozenset(important)
                scores[key] = Score(key, result[name].transpose(*GRID), lower, upper, named)
    return scores


def heads_table(results: Mapping[str, xr.Dataset]) -> pd.DataFrame:
    """Return one row a head and one column a score.

    Columns ``name`` (``L5H1``), ``layer``, ``head``, then ``analysis.variable`` and the ends of
    its interval, ``analysis.variable_lower`` and ``analysis.variable_upper``. A variable with one
    further dim of few entries has a column for each of them, ``analysis.variable[entry]``; curves
    and matrices of heads, and entries that no head has a value for, stay in the results.

    >>> mass = xr.DataArray([[0.1, 0.9]], dims=("layer", "head"))
    >>> table = heads_table({"sinks": xr.Dataset({"sink": mass})})
    >>> print(*table.loc[1, ["name", "sinks.sink"]])
    L0H1 0.9
    """
    columns = [
        column(entry_name(analysis, str(name), entry), array.isel(head))
        for analysis, result in results.items()
        for name, array in result.items()
        for entry, head in entries(array)
        if not entry or bool(array.isel(head).notnull().any())
    ]
    if not columns:
        return pd.DataFrame(columns=["name", *GRID])
    table = pd.concat(columns, axis=1).sort_index()
    index = table.index.to_frame(index=False)
    named = pd.DataFrame({"name": list(map(viz.head_name, index["layer"], index["head"]))})
    return pd.concat([named, index, table.reset_index(drop=True)], axis=1)


def entries(array: xr.DataArray) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield the scores of heads that an array holds: name and index.

    One without a name where there are no dims but layer and head; one an entry of a short list;
    none where it is no score of heads, or a curve or a matrix a head.

    >>> kinds = xr.DataArray([[[0.1]], [[0.9]]], dims=("kind", *GRID), coords={"kind": ["a", "b"]})
    >>> list(entries(kinds))
    [('a', {'kind': 0}), ('b', {'kind': 1})]
    """
    others = [str(dim) for dim in array.dims if dim not in GRID]
    if not set(GRID) <= set(array.dims) or len(others) > 1:
        return
    if not others:
        yield "", {}
    for dim in others:
        if array.sizes[dim] <= ENTRIES:
            for index in range(array.sizes[dim]):
                labelled = dim in array.coords
                name = str(array[dim][index].item()) if labelled else f"{dim} {index}"
                yield name, {dim: index}


def entry_name(analysis: str, variable: str, entry: str = "") -> str:
    """Return the name of the column of a score in the heads table.

    >>> entry_name("sinks", "sink"), entry_name("needle_sweep", "looked", "depth 0")
    ('sinks.sink', 'needle_sweep.looked[depth 0]')
    """
    return f"{analysis}.{variable}" + (f"[{entry}]" if entry else "")


def interval_text(lower: SupportsFloat, upper: SupportsFloat) -> str:
    """Write the ends of an interval; "" where it has none.

    >>> interval_text(0.25, 0.5), interval_text(float("nan"), 0.5)
    ('[0.250, 0.500]', '')
    """
    ends = float(lower), float(upper)
    return f"[{', '.join(map(viz.amount, ends))}]" if np.isfinite(ends).all() else ""


def column(name: str, array: xr.DataArray) -> pd.Series[float]:
    """Return the numbers of heads as a column, by layer and head."""
    array = indexed(array.transpose(*GRID))
    index = pd.MultiIndex.from_product(
        [array["layer"].values.tolist(), array["head"].values.tolist()], names=GRID
    )
    return pd.Series(np.asarray(array.values, dtype=float).ravel(), index=index, name=name)


def indexed(array: xr.DataArray) -> xr.DataArray:
    """Add the index as coordinate to layers and heads that have none."""
    bare = [dim for dim in GRID if dim not in array.coords]
    return array.assign_coords({dim: np.arange(array.sizes[dim]) for dim in bare})

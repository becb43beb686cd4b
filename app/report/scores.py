"""Scores: every number that a run has about every head, with ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import xarray as xr

from headscope import viz

GRID = ("layer", "head")


@dataclass(frozen=True)
class Score:
    """One (layer, head) variable of one analysis.

    Attributes
    ----------
    key
        ``analysis.variable``, as in links and files.
    array
        The values, dims layer and head.
    lower, upper
        Its interval, or None.
    """

    key: str
    array: xr.DataArray
    lower: xr.DataArray | None
    upper: xr.DataArray | None

    @property
    def title(self) -> str:
        """What it measures, in words."""
        return str(self.array.attrs.get("long_name", self.key))

    @property
    def is_causal(self) -> bool:
        """Whether the number comes from an intervention, not from looking."""
        return self.array.attrs.get("evidence") == "causal"

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


def collect(results: Mapping[str, xr.Dataset]) -> dict[str, Score]:
    """List the scores of heads in the results of a run, in order of analysis.

    Examples
    --------
    >>> mass = xr.DataArray([[0.1, 0.9]], dims=("layer", "head"))
    >>> list(collect({"sinks": xr.Dataset({"sink": mass})}))
    ['sinks.sink']
    """
    found = {}
    for analysis, result in results.items():
        for name in viz.variables(result):
            if set(result[name].dims) == set(GRID):
                sides = (
                    None if side is None else side.transpose(*GRID)
                    for side in viz.interval(result, name)
                )
                key = f"{analysis}.{name}"
                found[key] = Score(key, result[name].transpose(*GRID), *sides)
    return found

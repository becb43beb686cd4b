"""Matrix: one value for every pair of entries of a list."""

from typing import Any

import xarray as xr

from headscope.viz._frame import (
    CELLS,
    Bound,
    block_size,
    coarse,
    crowded,
    frame,
    heatmap,
    missing,
    thinned,
)
from headscope.viz._labels import described, entries
from headscope.viz._scale import finite

TICKS = 64
DIMS = ("one", "other")


def accepts(array: xr.DataArray) -> bool:
    """Accept values of pairs: the dims one and other."""
    return array.dtype.kind in "fiub" and set(array.dims) == set(DIMS)


def figure(
    array: xr.DataArray, *, lower: Bound = None, upper: Bound = None, fit: bool = False
) -> Any:
    """Draw one cell for every pair.

    The coordinates of the dims one and other name the entries. Above 512 entries the cells are
    coarsened to the strongest of each block, and the figure says so.
    """
    drawn = array.transpose(*DIMS)
    values = finite(drawn)
    notes = []
    steps = [block_size(size) for size in values.shape]
    named = [entries(drawn, dim)[::step] for dim, step in zip(DIMS, steps, strict=True)]
    if max(steps) > 1:
        values = coarse(values, steps)
        notes.append(f"strongest of {steps[0]} × {steps[1]} in each cell, at most {CELLS}")
    at, ticks = zip(*(thinned(names, TICKS) for names in named), strict=True)
    fig = frame(
        array,
        height=max(420, min(900, 120 + 14 * len(named[0]))),
        notes=notes,
        xaxis={"tickvals": [named[1][i] for i in at[1]], **crowded(len(ticks[1]))},
        yaxis={"tickvals": [named[0][i] for i in at[0]], "autorange": "reversed"},
    )
    hover = [
        [
            described(array, f"<b>{down} and {across}</b>", value)
            for across, value in zip(named[1], row, strict=True)
        ]
        for down, row in zip(named[0], values.tolist(), strict=True)
    ]
    axes: dict[str, Any] = {"x": named[1], "y": named[0]}
    template = "%{hovertext}<extra></extra>"
    cells = heatmap(array, values, fit, hovertext=hover, hovertemplate=template, **axes)
    fig.add_traces([cells, missing(values, **axes)])
    return fig

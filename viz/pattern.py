"""Pattern: who attends to whom, query tokens down and key tokens across."""

from typing import Any

import numpy as np
import xarray as xr

from headscope.viz._frame import (
    CELLS,
    Bound,
    block_size,
    coarse,
    crowded,
    frame,
    heatmap,
    holes,
    menu,
    missing,
)
from headscope.viz._labels import POSITIONS, combinations, positions, token_row
from headscope.viz._scale import finite

TICKS = 48


def accepts(array: xr.DataArray) -> bool:
    """Accept maps between two position dims (query and key, or their tiles)."""
    dims = set(array.dims)
    return array.dtype.kind in "fiub" and len(dims & set(POSITIONS)) == 2 and "edge" not in dims


def figure(
    array: xr.DataArray, *, lower: Bound = None, upper: Bound = None, fit: bool = False
) -> Any:
    """Draw a map from query positions (down) to key positions (across).

    Maps wider than 512 positions are coarsened to the strongest cell of each block, and the
    figure says so; a menu chooses among the entries of any other dim.

    The array has two position dims. A coordinate ``token`` along the query names the words,
    ``key_token`` those along the key.
    """
    down, across = _sides(array)
    other_dims = tuple(str(dim) for dim in array.dims if dim not in (down, across))
    array = array.transpose(*other_dims, down, across)
    panels = combinations(array, other_dims)
    sizes = block_size(array.sizes[down]), block_size(array.sizes[across])
    # All panels travel with the figure, so together they may not exceed one full map.
    room = max(1, CELLS * CELLS // max(1, array.sizes[down] * array.sizes[across]))
    notes = [f"first {room} of {len(panels)} maps"] if len(panels) > room else []
    panels = panels[:room]
    if max(sizes) > 1:
        notes.append(f"each cell is the strongest of {sizes[0]} × {sizes[1]}")
    drawn = [coarse(finite(array.isel(at)), sizes) for _, at in panels]
    if any(not np.isfinite(values).all() for values in drawn):
        notes.append("grey: no value")
    sides = [_labels(array, at, (down, across), sizes) for _, at in panels]
    crossed = array.attrs.get("attention") == "cross"
    attending, attended = ("target token", "source token") if crossed else ("query", "key")
    fig = frame(
        array,
        height=140 + min(max(13 * drawn[0].shape[0], 380), 640),
        notes=notes,
        xaxis=_axis(f"attended to ({attended})", [side[1] for side in sides]),
        yaxis={
            **_axis(f"attending ({attending})", [side[0] for side in sides]),
            "autorange": "reversed",
            "tickangle": 0,
        },
        showlegend=False,
    )
    values, ((rows, _), (columns, _)) = drawn[0], sides[0]
    # Of a single map the layer of missing cells is left out where none is missing: it is as large.
    if len(panels) > 1 or not np.isfinite(values).all():
        fig.add_trace(missing(values, columns, rows))
    hover = "%{y} attends to<br>%{x}"
    fig.add_trace(heatmap(array, values.astype(np.float32), fit, hover, x=columns, y=rows))
    if len(panels) > 1:
        changes = [
            {"z": [holes(weights), weights.astype(np.float32)], "x": [across] * 2, "y": [down] * 2}
            for weights, ((down, _), (across, _)) in zip(drawn, sides, strict=True)
        ]
        fig.update_layout(updatemenus=[menu([label for label, _ in panels], changes, [0, 1])])
    return fig


def _sides(array: xr.DataArray) -> tuple[str, str]:
    first, second = (str(dim) for dim in array.dims if dim in POSITIONS)
    return (second, first) if first.startswith("key") else (first, second)


def _labels(
    array: xr.DataArray, at: dict[str, int], dims: tuple[str, str], sizes: tuple[int, int]
) -> list[tuple[list[str], list[str]]]:
    tokens = [token_row(array, dim, at) for dim in dims]
    # Keys without words of their own are those of the queries in self-attention.
    if tokens[1] is None and array.sizes[dims[0]] == array.sizes[dims[1]]:
        tokens[1] = tokens[0]
    return [
        positions(array, dim, row, size) for dim, row, size in zip(dims, tokens, sizes, strict=True)
    ]


def _axis(name: str, panels: list[tuple[list[str], list[str]]]) -> dict[str, Any]:
    full, short = panels[0]
    axis: dict[str, Any] = {"title": {"text": name}, "type": "category", "showgrid": False}
    # Beyond this many, or where the panels differ, plotly thins the full names by itself.
    if len(short) > TICKS or any(other != panels[0] for other in panels):
        return {**axis, "nticks": TICKS // 2}
    return {**axis, "tickvals": full, "ticktext": short, **crowded(len(short))}

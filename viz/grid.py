"""Grid: one cell a head, layer 0 at the top."""

from typing import Any

import numpy as np
import xarray as xr

from headscope.kernels.formatting import MISSING
from headscope.viz._frame import (
    PANELS,
    Bound,
    cell_axis,
    frame,
    heatmap,
    holes,
    menu,
    missing,
    thinned,
)
from headscope.viz._labels import (
    ABSENT,
    POSITIONS,
    absent,
    combinations,
    entries,
    head_name,
    interval_label,
    measured,
    title,
    units,
)
from headscope.viz._scale import Array, finite, ranks

# Up to this many heads a layer the numbers fit into the cells.
WRITTEN = 16


def accepts(array: xr.DataArray) -> bool:
    """Accept scores of heads: dims layer and head (or kv_head), and no positions."""
    dims = set(array.dims)
    return (
        array.dtype.kind in "fiub"
        and "layer" in dims
        and len(dims & {"head", "kv_head"}) == 1
        and not dims & {*POSITIONS, "edge", "point", "checkpoint"}
    )


def figure(
    array: xr.DataArray,
    *,
    lower: Bound = None,
    upper: Bound = None,
    fit: bool = False,
) -> Any:
    """Draw a score of every head.

    The array has the dims layer and head (or kv_head); a menu chooses among the entries of any
    other dim.
    """
    column = "head" if "head" in array.dims else "kv_head"
    other_dims = tuple(str(dim) for dim in array.dims if dim not in ("layer", column))
    panels = combinations(array, other_dims)
    notes = [f"first {PANELS} of {len(panels)} panels"] if len(panels) > PANELS else []
    panels = panels[:PANELS]
    drawn = [_panel(array.isel(at), lower, upper, at, column) for _, at in panels]
    layers, heads = entries(array, "layer"), entries(array, column)
    lacking = np.array(absent(array))
    if any(not np.isfinite(values[~lacking]).all() for values, _, _ in drawn):
        notes.append(f"grey: {MISSING}")
    if lacking.any():
        notes.append("grey rows: no attention map in the layer")
    fig = frame(
        array,
        height=100 + max(_row_height(len(layers)) * len(layers), 100),
        notes=notes,
        xaxis=_axis("head", heads, "H" if column == "head" else "KV"),
        yaxis={**_axis("layer", layers, "L"), "autorange": "reversed"},
        showlegend=False,
    )
    values, written, hover = drawn[0]
    cells = heatmap(
        array,
        values,
        fit,
        text=written,
        texttemplate="%{text}" if len(heads) <= WRITTEN else None,
        hovertext=hover,
        hovertemplate="%{hovertext}<extra></extra>",
        xgap=1,
        ygap=1,
    )
    fig.add_traces([missing(values), cells])
    if len(panels) > 1:
        changes = [
            {"z": [holes(grid), grid], "text": [None, text], "hovertext": [None, over]}
            for grid, text, over in drawn
        ]
        fig.update_layout(updatemenus=[menu([label for label, _ in panels], changes, [0, 1])])
    return fig


def _row_height(layers: int) -> int:
    return 36 if layers <= 12 else 26 if layers <= 28 else 16


def _axis(name: str, labels: list[str], letter: str) -> dict[str, Any]:
    at, text = thinned([f"{letter}{label}" for label in labels], 40)
    return cell_axis(name, len(labels), tickvals=at, ticktext=text)


def _panel(
    array: xr.DataArray, lower: Bound, upper: Bound, at: dict[str, int], column: str
) -> tuple[Array, list[list[str]], list[list[str]]]:
    array = array.transpose("layer", column)
    values, head_ranks = finite(array), ranks(array)
    count = int(np.isfinite(values).sum())
    layers, heads = entries(array, "layer"), entries(array, column)
    lacking = absent(array)
    bounds = None
    if lower is not None and upper is not None:
        bounds = [
            finite(side.isel(at, missing_dims="ignore").transpose("layer", column))
            for side in (lower, upper)
        ]
    hover: list[list[str]] = []
    for row, layer in enumerate(layers):
        hover.append([])
        for cell, head in enumerate(heads):
            name = head_name(layer, head, "H" if column == "head" else "KV")
            value = float(values[row, cell])
            text = ABSENT if lacking[row] else measured(value, units(array))
            lines = [f"<b>{name}</b>", f"{title(array)}: {text}"]
            if bounds is not None and np.isfinite(value):
                lines.append(interval_label(*(float(side[row, cell]) for side in bounds)))
            if np.isfinite(value):
                lines.append(f"rank {head_ranks[row, cell]:.0f} of {count}")
            hover[-1].append("<br>".join(lines))
    reach = float(np.nanmax(np.abs(values))) if count else 0.0
    written = [
        ["" if lacks else _short(value, reach) for value in row]
        for row, lacks in zip(values.tolist(), lacking, strict=True)
    ]
    return values, written, hover


def _short(value: float, reach: float) -> str:
    """Write a value in as many decimals as tell it from the others of the grid."""
    if not np.isfinite(value):
        return "n/a"
    if reach >= 100 or reach < 0.005:
        return f"{value:.2g}"
    text = f"{value:.{2 if reach >= 0.2 else 3}f}"
    return text.removeprefix("-") if float(text) == 0 else text

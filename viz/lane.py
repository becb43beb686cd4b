"""Lane: values along the tokens of a text, one row for each text or head."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from headscope.viz._frame import (
    CELLS,
    Bound,
    block_size,
    blocks,
    cell_axis,
    colour_bar,
    crowded,
    frame,
    heatmap,
    marked,
    missing,
    thinned,
    whiskers,
)
from headscope.viz._labels import POSITIONS, combinations, described, positions, token_row, units
from headscope.viz._scale import GREY, Array, finite, scale

TICKS = 48


def accepts(array: xr.DataArray) -> bool:
    """Accept values along one position dim (query, key or one of their tiles)."""
    dims = set(array.dims)
    return (
        array.dtype.kind in "fiub"
        and len(dims & set(POSITIONS)) == 1
        and not dims & {"edge", "point"}
    )


def figure(
    array: xr.DataArray, *, lower: Bound = None, upper: Bound = None, fit: bool = False
) -> Any:
    """Draw values over the positions of a text.

    One row is drawn as bars, several as rows of coloured cells. More than 512 positions or rows
    are coarsened, and the figure says so.

    The array has one position dim; all other dims together give the rows. A coordinate ``token``
    along the position dim names the words.
    """
    along = next(str(dim) for dim in array.dims if dim in POSITIONS)
    other_dims = tuple(str(dim) for dim in array.dims if dim != along)
    array = array.transpose(*other_dims, along)
    rows = combinations(array, other_dims)
    values = finite(array).reshape(len(rows), array.sizes[along])
    size = block_size(values.shape[1])
    named = [positions(array, along, token_row(array, along, at), size) for _, at in rows]
    notes = [f"each cell is the strongest of {size} positions"] if size > 1 else []
    if len(rows) == 1:
        ranged = None if lower is None or upper is None or size > 1 else (lower, upper)
        return _bars(array, blocks(values, size)[0], named[0], along, notes, ranged, fit)
    if len(rows) > CELLS:
        notes.append(f"first {CELLS} of {len(rows)} rows")
    labels = [label for label, _ in rows[:CELLS]]
    return _rows(array, blocks(values[:CELLS], size), labels, named, along, notes, fit)


def _axis(along: str, labels: list[str]) -> dict[str, Any]:
    at, text = thinned(labels, TICKS if len(labels) <= TICKS else TICKS // 2)
    name = f"position ({along.replace('_', ' ')})"
    return cell_axis(name, len(labels), tickvals=at, ticktext=text, **crowded(len(at)))


def _bars(
    array: xr.DataArray,
    values: Array,
    named: tuple[list[str], list[str]],
    along: str,
    notes: list[str],
    ranged: tuple[xr.DataArray, xr.DataArray] | None,
    fit: bool,
) -> Any:
    full, short = named
    chosen = scale(array, fit)
    present = np.isfinite(values)
    if not present.all():
        notes = [*notes, "grey: not measured"]
    bounds = [finite(side).ravel() for side in ranged or ()]
    hover = [
        described(array, label, value, ends)
        for label, value, *ends in zip(full, values, *bounds, strict=True)
    ]
    fig = frame(
        array,
        height=340,
        notes=notes,
        xaxis=_axis(along, short),
        yaxis={"title": {"text": units(array) or "value"}, "range": [chosen.low, chosen.high]},
        bargap=0.1,
        showlegend=False,
    )
    fig.add_trace(
        go.Bar(
            x=list(range(len(values))),
            y=values,
            error_y=whiskers(values, *bounds) if bounds else None,
            marker={
                **marked(values, chosen),
                "colorbar": colour_bar(array),
                "line": {"width": 0.5, "color": "rgba(128,128,128,0.8)"},
            },
            hovertext=hover,
            hovertemplate="%{hovertext}<extra></extra>",
        )
    )
    for position in np.flatnonzero(~present).tolist():
        fig.add_vrect(position - 0.5, position + 0.5, fillcolor=GREY, opacity=0.35, line_width=0)
    return fig


def _rows(
    array: xr.DataArray,
    values: Array,
    labels: list[str],
    named: list[tuple[list[str], list[str]]],
    along: str,
    notes: list[str],
    fit: bool,
) -> Any:
    if not np.isfinite(values).all():
        notes = [*notes, "grey: not measured or past the end of the text"]
    # Where the rows are the same text its words stand on the axis, else in the hover text.
    one_text = all(row == named[0] for row in named)
    count = [str(index) for index in range(values.shape[1])]
    full, short = named[0] if one_text else (count, count)
    at, _ = thinned(labels, 40)
    fig = frame(
        array,
        height=150 + min(max(18 * len(labels), 90), 640),
        notes=notes,
        xaxis={**_axis(along, short), "type": "category"},
        yaxis={
            "type": "category",
            "tickvals": [labels[index] for index in at],
            "autorange": "reversed",
            "showgrid": False,
            "automargin": True,
        },
        showlegend=False,
    )
    axes = {"x": full, "y": labels}
    hover = "%{y}<br>%{x}" if one_text else "%{y}<br>%{text}"
    text = None if one_text else [text_of for text_of, _ in named]
    cells = heatmap(array, values.astype(np.float32), fit, hover, text=text, **axes)
    fig.add_traces([missing(values, **axes), cells])
    return fig

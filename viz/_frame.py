"""What every figure shares: layout, colour bar, missing cells, a menu of panels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
import xarray as xr

from headscope.viz._labels import title, units
from headscope.viz._scale import GREY, Array, Scale, scale

Bound = xr.DataArray | None
"""One end of the intervals of a variable, where it has any."""

CELLS = 512
PANELS = 40
CROWD = 24

# Colours of text and of the page are left to whoever shows the figure, so that light and dark
# pages both work; lines are a grey that is seen on both.
AXIS = {
    "gridcolor": "rgba(128,128,128,0.25)",
    "zerolinecolor": "rgba(128,128,128,0.6)",
    "automargin": True,
    "title": {"standoff": 10},
}
TEMPLATE = go.layout.Template(
    layout={
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": AXIS,
        "yaxis": AXIS,
    }
)


def frame(array: xr.DataArray, *, height: int, notes: Sequence[str] = (), **layout: Any) -> Any:
    """Start a figure: the name of the variable as title, the notes below it."""
    return go.Figure(
        layout={
            "template": TEMPLATE,
            "title": {
                "text": f"<b>{title(array)}</b>",
                "subtitle": {"text": " · ".join(notes)},
                "x": 0,
                "xanchor": "left",
                "y": 1,
                "yanchor": "top",
                "pad": {"t": 8},
            },
            "height": height + (22 if notes else 0),
            "margin": {"l": 70, "r": 20, "t": 66 if notes else 44, "b": 50},
            **layout,
        }
    )


def colour_bar(array: xr.DataArray) -> dict[str, Any]:
    """Describe the colour bar: the units of the variable stand along it."""
    return {"title": {"text": units(array) or "value", "side": "right"}, "thickness": 14}


def heatmap(array: xr.DataArray, values: Any, fit: bool, hover: str = "", **trace: Any) -> Any:
    """Draw cells in the colours of a variable; ``hover`` says where a cell is, before its value."""
    chosen = scale(array, fit)
    if hover:
        hover += f"<br>{title(array)}: %{{z:.3g}} {units(array)}<extra></extra>"
        trace["hovertemplate"] = hover
    return go.Heatmap(
        z=values,
        colorbar=colour_bar(array),
        colorscale=chosen.colours,
        zmin=chosen.low,
        zmax=chosen.high,
        **trace,
    )


def marked(values: Any, scale: Scale) -> dict[str, Any]:
    """Describe values and their scale to bars or markers."""
    return {"color": values, "colorscale": scale.colours, "cmin": scale.low, "cmax": scale.high}


def whiskers(values: Array, low: Array, high: Array) -> dict[str, Any]:
    """Describe intervals around bars, in a grey that is seen on bars and on the page."""
    return {
        "symmetric": False,
        "color": "#8a929c",
        "thickness": 2,
        "array": high - values,
        "arrayminus": values - low,
    }


def cell_axis(name: str, count: int, **more: Any) -> dict[str, Any]:
    """Describe an axis along cells, which end where the axis ends."""
    return {
        "title": {"text": name},
        "range": [-0.5, count - 0.5],
        "showgrid": False,
        "zeroline": False,
        **more,
    }


def holes(values: Array) -> npt.NDArray[np.float32]:
    """Mark the cells without a value with 1, the others with NaN, as `missing` draws them."""
    return np.where(np.isfinite(values), np.nan, 1.0).astype(np.float32)


def missing(values: Array, x: Any = None, y: Any = None) -> Any:
    """Draw the cells without a value in grey: missing is not zero."""
    return go.Heatmap(
        z=holes(values),
        x=x,
        y=y,
        colorscale=[[0, GREY], [1, GREY]],
        showscale=False,
        hoverinfo="skip",
        name="missing",
    )


def menu(labels: Sequence[str], changes: Sequence[dict[str, Any]], traces: Sequence[int]) -> Any:
    """Draw a menu of several panels of the same array."""
    buttons = [
        {"label": label, "method": "restyle", "args": [change, list(traces)]}
        for label, change in zip(labels, changes, strict=True)
    ]
    return {
        "type": "dropdown",
        "buttons": buttons,
        "x": 1,
        "xanchor": "right",
        "y": 1.02,
        "yanchor": "bottom",
        "bgcolor": "rgba(128,128,128,0.15)",
    }


def blocks(values: Array, size: int) -> Array:
    """Coarsen the last axis: each cell becomes the value farthest from 0 of `size` cells.

    The mean would hide a single strong cell, which is what the reader looks for.
    """
    if size == 1:
        return values
    count = -(-values.shape[-1] // size)
    room = np.full((*values.shape[:-1], count * size), np.nan)
    room[..., : values.shape[-1]] = values
    parts = room.reshape(*values.shape[:-1], count, size)
    strength = np.where(np.isfinite(parts), np.abs(parts), -1.0)
    index = strength.argmax(axis=-1)[..., None]
    return np.asarray(np.take_along_axis(parts, index, axis=-1)[..., 0])


def coarse(values: Array, sizes: Sequence[int]) -> Array:
    """Coarsen rows and columns."""
    return blocks(blocks(values, sizes[1]).T, sizes[0]).T


def block_size(length: int) -> int:
    """Return how many positions must share a cell for `length` of them to be drawn."""
    return -(-length // CELLS)


def crowded(count: int) -> dict[str, Any]:
    """Set the labels of many ticks upright and small, so that all of them can be read."""
    return {"tickangle": -90, "tickfont": {"size": 9}} if count > CROWD else {}


def thinned(labels: Sequence[str], most: int) -> tuple[list[int], list[str]]:
    """Pick the ticks that fit, evenly."""
    step = max(1, -(-len(labels) // most))
    at = list(range(0, len(labels), step))
    return at, [labels[index] for index in at]

"""Number: a single value, with its interval."""

from typing import Any

import plotly.graph_objects as go
import xarray as xr

from headscope.viz._frame import Bound, frame
from headscope.viz._labels import interval_label, measured, units
from headscope.viz._scale import finite


def accepts(array: xr.DataArray) -> bool:
    """Accept a value without dims."""
    return array.dtype.kind in "fiub" and array.ndim == 0


def label_text(array: xr.DataArray, lower: Bound = None, upper: Bound = None) -> str:
    """Write the value with its units and its interval.

    >>> label_text(xr.DataArray(0.5, attrs={"units": "fraction"}))
    '0.500 fraction'
    """
    text = measured(float(finite(array)), units(array))
    if lower is None or upper is None:
        return text
    return f"{text} ({interval_label(*(float(finite(side)) for side in (lower, upper)))})"


def figure(
    array: xr.DataArray, *, lower: Bound = None, upper: Bound = None, fit: bool = False
) -> Any:
    """Draw a single value as text, with its interval."""
    fig = frame(array, height=130, xaxis={"visible": False}, yaxis={"visible": False})
    # A trace without points: an empty figure draws axes instead of the annotation.
    fig.add_trace(go.Scatter(x=[], y=[], hoverinfo="skip", showlegend=False))
    fig.add_annotation(
        text=label_text(array, lower, upper),
        xref="paper",
        yref="paper",
        x=0,
        y=0.4,
        xanchor="left",
        showarrow=False,
        font={"size": 26},
    )
    return fig

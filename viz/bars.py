"""Bars: one value for each condition, with its interval."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from headscope.viz._frame import Bound, frame, whiskers
from headscope.viz._labels import POSITIONS, combinations, described, entries, measured, units
from headscope.viz._scale import DISTINCT, Array, finite
from headscope.viz.lines import ALONG

MOST = 40
PATTERNS = ("", "/", "x", ".", "-", "+")


def accepts(array: xr.DataArray) -> bool:
    """Accept one or two dims: no heads, positions, edges, points, pairs or patches."""
    dims = set(array.dims)
    return (
        array.dtype.kind in "fiub"
        and array.ndim in (1, 2)
        and not dims & {*POSITIONS, *ALONG, "edge", "point"}
        and dims not in ({"row", "column"}, {"one", "other"})
        and not ("layer" in dims and dims & {"head", "kv_head"})
    )


def figure(
    array: xr.DataArray, *, lower: Bound = None, upper: Bound = None, fit: bool = False
) -> Any:
    """Draw one bar for each entry of the last dim, in groups over a first dim if there is one.

    Of more than 40 entries the largest are drawn, and the figure says so.
    """
    groups, along = ([None], array.dims[0]) if array.ndim == 1 else (array.dims[0], array.dims[1])
    values = np.atleast_2d(finite(array))
    bounds = None
    if lower is not None and upper is not None:
        bounds = [np.atleast_2d(finite(side.transpose(*array.dims))) for side in (lower, upper)]
    names = [label for label, _ in combinations(array, (str(along),))]
    notes = []
    if len(names) > MOST:
        strength = np.nan_to_num(np.abs(values)).max(axis=0)
        largest = np.sort(np.argsort(-strength, kind="stable")[:MOST])
        notes.append(f"largest {MOST} of {len(names)}")
        names, values = [names[index] for index in largest], values[:, largest]
        bounds = [side[:, largest] for side in bounds] if bounds is not None else None
    if bounds is not None:
        notes.append("whiskers: 95 % interval")
    if not np.isfinite(values).all():
        notes.append("no bar: not measured")
    legend = [""] if array.ndim == 1 else entries(array, str(groups))
    height = 110 + (32 if len(legend) == 1 else 16 * len(legend)) * len(names)
    fig = frame(
        array,
        height=max(height, 220),
        notes=notes,
        xaxis={"title": {"text": units(array) or "value"}, "range": _range(array, fit)},
        # Names of entries may look like numbers, as offsets do.
        yaxis={"autorange": "reversed", "automargin": True, "type": "category"},
        barmode="group",
        showlegend=len(legend) > 1,
        legend={"title": {"text": str(groups)}} if len(legend) > 1 else None,
    )
    for row, label in enumerate(legend):
        fig.add_trace(_bar(array, names, values, bounds, row, label))
    return fig


def _range(array: xr.DataArray, fit: bool) -> list[float] | None:
    low, high = array.attrs.get("low"), array.attrs.get("high")
    if fit or low is None or high is None:
        return None
    # Room to the right for the number that stands at the end of the longest bar.
    span = float(high) - float(low)
    return [min(float(low), 0.0), float(high) + 0.12 * span]


def _bar(
    array: xr.DataArray,
    names: list[str],
    values: Array,
    bounds: list[Array] | None,
    row: int,
    label: str,
) -> Any:
    group = f" · {label}" if label else ""
    ends = [side[row] for side in bounds or ()]
    hover = [
        described(array, f"<b>{name}</b>{group}", value, of_value)
        for name, value, *of_value in zip(names, values[row], *ends, strict=True)
    ]
    # With several groups the bars are too thin to write on.
    written = [measured(float(value), "") if np.isfinite(value) else "" for value in values[row]]
    return go.Bar(
        y=names,
        x=values[row],
        orientation="h",
        name=label,
        error_x=whiskers(values[row], *ends) if ends else None,
        marker={
            "color": DISTINCT[row % len(DISTINCT)],
            "pattern": {"shape": PATTERNS[row % len(PATTERNS)]},
        },
        # At the base, where no whisker crosses it; beside a bar too short to hold it.
        text=written if len(values) == 1 else None,
        # Elsewhere plotly leaves the number of an empty bar out, as if nothing had been measured.
        textposition=["outside" if value == 0 else "auto" for value in values[row]],
        insidetextanchor="start",
        hovertext=hover,
        hovertemplate="%{hovertext}<extra></extra>",
    )

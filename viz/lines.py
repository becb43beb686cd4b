"""Lines: values over training, or over removed heads, one line a head or entry."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from headscope.viz._frame import Bound, frame
from headscope.viz._labels import POSITIONS, combinations, described, entries, title, units
from headscope.viz._scale import DISTINCT, Array, finite

# Lines that can be distinguished; of more, those that change most.
MOST = 24
# Bands of more would cover each other; the hover text has every interval.
BANDS = 8
DASHES = ("solid", "dash", "dot", "dashdot")
# Dims that lines run along, with the titles of their axes.
ALONG = {
    "checkpoint": "checkpoint", "removed": "heads removed",
    "groups_removed": "KV groups removed", "circuit_edges": "edges in the circuit",
}  # fmt: skip
# Dims whose numbers lie as far apart as powers do.
LOGARITHMIC = {"circuit_edges"}
FADED = 0.25


def accepts(array: xr.DataArray) -> bool:
    """Accept values over checkpoints or numbers of heads or edges; no positions, edges, points."""
    dims = set(array.dims)
    return (
        array.dtype.kind in "fiub"
        and bool(dims & set(ALONG))
        and not dims & {*POSITIONS, "edge", "point", "row", "column", "one", "other"}
    )


def figure(
    array: xr.DataArray,
    *,
    lower: Bound = None,
    upper: Bound = None,
    fit: bool = False,
    picked: str = "",
) -> Any:
    """Draw a line over training for each head, or each entry of the other dims.

    Of more than 24 lines those that change most are drawn, and the figure says so. A checkpoint
    without a value leaves a gap. Lines of ``picked``, a head such as L1H3, stand out.

    The array has the dim checkpoint, with its training steps as the coordinate ``step``; without
    it, checkpoints are drawn at equal distances. Or it has a dim of numbers of removed heads, or of
    the edges of a circuit, drawn on a logarithmic axis.
    """
    along = next(dim for dim in ALONG if dim in array.dims)
    other_dims = tuple(str(dim) for dim in array.dims if dim != along)
    lines = combinations(array, other_dims)
    values = _rows(array, other_dims)
    notes = []
    rows = np.arange(len(lines))
    chosen = np.array([picked in name.split(", ") for name, _ in lines]) & bool(picked)
    if len(lines) > MOST:
        rows = np.sort(np.argsort(-_change(values) - 1e9 * chosen, kind="stable")[:MOST])
        notes.append(f"{MOST} of {len(lines)}: those that change most")
    bounds = None
    if lower is not None and upper is not None:
        bounds = _rows(lower, other_dims), _rows(upper, other_dims)
        if len(rows) <= BANDS:
            notes.append("bands: 95 % interval")
    if not np.isfinite(values[rows]).all():
        notes.append("gaps: not measured")
    at, labels, axis = _steps(array, along)
    fig = frame(
        array,
        height=420,
        notes=notes,
        xaxis=axis,
        yaxis={"title": {"text": units(array) or "value"}, "range": _range(array, fit)},
        hovermode="closest",
        showlegend=len(rows) > 1,
    )
    for index, row in enumerate(rows.tolist()):
        name = lines[row][0] or title(array)
        faded = chosen.any() and not chosen[row]
        ends = None if bounds is None else (bounds[0][row], bounds[1][row])
        colour = DISTINCT[index % len(DISTINCT)]
        if ends is not None and len(rows) <= BANDS and not faded:
            fig.add_trace(_band(at, *ends, colour, name))
        fig.add_trace(
            go.Scatter(
                x=at,
                y=[None if np.isnan(value) else value for value in values[row].tolist()],
                mode="lines+markers",
                name=name,
                legendgroup=name,
                line={
                    "color": colour,
                    "dash": DASHES[index // len(DISTINCT) % len(DASHES)],
                    "width": 4 if chosen[row] else 2,
                },
                marker={"size": 9 if chosen[row] else 6},
                opacity=FADED if faded else 1,
                customdata=[[name]] * len(at),
                connectgaps=False,
                hovertext=_hover(array, name, labels, values[row], ends),
                hovertemplate="%{hovertext}<extra></extra>",
            )
        )
    # Lines first, bands behind them in the list: the first trace is what a reader asks for.
    fig.data = sorted(fig.data, key=lambda trace: not trace.hovertext)
    return fig


def _rows(array: xr.DataArray, other_dims: tuple[str, ...]) -> Array:
    """Return one row a line, one column a point along it."""
    values = finite(array.transpose(*other_dims, ...))
    return values.reshape(-1, values.shape[-1])


def _change(values: Array) -> Array:
    """Return the distance between the largest and the smallest value of each line."""
    high = np.where(np.isnan(values), -np.inf, values).max(-1)
    low = np.where(np.isnan(values), np.inf, values).min(-1)
    return np.where(np.isfinite(high), high - low, -1.0)


def _steps(array: xr.DataArray, along: str) -> tuple[list[float], list[str], dict[str, Any]]:
    """Return where the checkpoints stand, what to call them, and the axis."""
    names = entries(array, along)
    if along != "checkpoint":
        at = [float(name) for name in names]
        axis: dict[str, Any] = {"title": {"text": ALONG[along]}}
        if along in LOGARITHMIC:
            axis["type"] = "log"
        unit = "edges" if along == "circuit_edges" else "removed"
        return at, [f"{name} {unit}" for name in names], axis
    if "step" in array.coords and array["step"].dims == ("checkpoint",):
        at = [float(number) for number in array["step"].values.tolist()]
        labels = [
            f"step {step:g}" + ("" if name in (f"step{step:g}", str(line_index)) else f" ({name})")
            for line_index, (step, name) in enumerate(zip(at, names, strict=True))
        ]
        return at, labels, {"title": {"text": "training step"}}
    count = [float(index) for index in range(len(names))]
    axis = {"title": {"text": "checkpoint"}, "tickvals": count, "ticktext": names}
    return count, names, axis


def _range(array: xr.DataArray, fit: bool) -> list[float] | None:
    low, high = array.attrs.get("low"), array.attrs.get("high")
    if fit or low is None or high is None:
        return None
    margin = 0.04 * (float(high) - float(low))
    return [float(low) - margin, float(high) + margin]


def _hover(
    array: xr.DataArray,
    name: str,
    labels: list[str],
    values: Array,
    ends: tuple[Array, Array] | None,
) -> list[str]:
    return [
        described(array, f"<b>{name}</b><br>{step}", value, bounds if np.isfinite(value) else ())
        for step, value, *bounds in zip(labels, values, *(ends or ()), strict=True)
    ]


def _band(at: list[float], low: Array, high: Array, colour: str, name: str) -> Any:
    present = np.flatnonzero(np.isfinite(low) & np.isfinite(high)).tolist()
    return go.Scatter(
        x=[at[index] for index in present] + [at[index] for index in reversed(present)],
        y=[float(high[index]) for index in present]
        + [float(low[index]) for index in reversed(present)],
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=colour,
        opacity=0.18,
        legendgroup=name,
        showlegend=False,
        hoverinfo="skip",
    )

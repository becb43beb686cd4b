"""Points: a cloud in the plane, coloured by a value."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from headscope.viz._frame import PANELS, Bound, colour_bar, frame, marked, menu
from headscope.viz._labels import combinations, described, entries, visible
from headscope.viz._scale import finite, scale

# Kinds differ by their shape, as colour says the value.
SHAPES = ("circle", "diamond", "square", "cross", "triangle-up", "x", "star", "pentagon")


def accepts(array: xr.DataArray) -> bool:
    """Accept values of points: the dim point, with coordinates x and y."""
    return array.dtype.kind in "fiub" and "point" in array.dims and {"x", "y"} <= set(array.coords)


def figure(
    array: xr.DataArray, *, lower: Bound = None, upper: Bound = None, fit: bool = False
) -> Any:
    """Draw every point at its coordinates, coloured by its value.

    The array has the dim point; a menu chooses among the entries of any other dim. The coordinates
    ``x`` and ``y`` are the position, and may have these other dims too; ``kind`` (point) chooses
    the shape and ``label`` (point) the name, where there are such.
    """
    other_dims = tuple(str(dim) for dim in array.dims if dim != "point")
    panels = combinations(array, other_dims)
    notes = [f"first {PANELS} of {len(panels)} panels"] if len(panels) > PANELS else []
    panels = panels[:PANELS]
    kinds = _column(array, "kind") or [""] * array.sizes["point"]
    names = _column(array, "label") or [f"point {index}" for index in entries(array, "point")]
    order = list(dict.fromkeys(kinds))
    if len(order) > 1:
        notes.append("shapes: " + ", ".join(visible(kind, 40) for kind in order))
    groups = [np.flatnonzero(np.asarray(kinds) == kind) for kind in order]
    fig = frame(
        array,
        height=520,
        notes=notes,
        xaxis={"title": {"text": _axis(array, "x")}},
        yaxis={"title": {"text": _axis(array, "y")}},
        hovermode="closest",
        showlegend=len(order) > 1,
        legend={"orientation": "h", "y": -0.15},
    )
    drawn = [
        [_cloud(array, at, members, names, lower, upper) for members in groups] for _, at in panels
    ]
    chosen = scale(array, fit)
    for index, (kind, cloud) in enumerate(zip(order, drawn[0], strict=True)):
        marker = {
            "size": 9,
            "symbol": SHAPES[index % len(SHAPES)],
            **marked(cloud["values"], chosen),
            "showscale": index == 0,
            "colorbar": colour_bar(array),
            "line": {"width": 0.5, "color": "rgba(128,128,128,0.9)"},
        }
        fig.add_trace(
            go.Scatter(
                x=cloud["x"].tolist(),
                y=cloud["y"].tolist(),
                mode="markers",
                marker=marker,
                hovertext=cloud["hover"],
                hovertemplate="%{hovertext}<extra></extra>",
                name=visible(kind, 40) if kind else "points",
            )
        )
    if len(panels) > 1:
        changes = [
            {
                "x": [cloud["x"].tolist() for cloud in panel],
                "y": [cloud["y"].tolist() for cloud in panel],
                "marker.color": [cloud["values"].tolist() for cloud in panel],
                "hovertext": [cloud["hover"] for cloud in panel],
            }
            for panel in drawn
        ]
        labels = [label for label, _ in panels]
        fig.update_layout(updatemenus=[menu(labels, changes, list(range(len(order))))])
    return fig


def _cloud(
    array: xr.DataArray,
    at: dict[str, int],
    members: Any,
    names: list[str],
    lower: Bound,
    upper: Bound,
) -> dict[str, Any]:
    """Select the points of one kind in one panel."""
    selected = array.isel({**at, "point": members})
    values = finite(selected)
    sides = () if lower is None or upper is None else (lower, upper)
    bounds = [np.asarray(side.isel({**at, "point": members}), dtype=float) for side in sides]
    hover = [
        described(array, f"<b>{names[index]}</b>", value, ends)
        for index, value, *ends in zip(members, values, *bounds, strict=True)
    ]
    x, y = (np.asarray(selected.coords[side].values, dtype=np.float64) for side in ("x", "y"))
    return {"x": x, "y": y, "values": values, "hover": hover}


def _column(array: xr.DataArray, name: str) -> list[str]:
    if name not in array.coords or array.coords[name].dims != ("point",):
        return []
    return [visible(value, 60) for value in array.coords[name].values.tolist()]


def _axis(array: xr.DataArray, side: str) -> str:
    return visible(array.coords[side].attrs.get("long_name", side), 60).replace("·", " ")

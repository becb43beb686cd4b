"""Graph: which heads or features feed which, layer 0 at the top."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from headscope.viz._frame import Bound, colour_bar, frame, marked
from headscope.viz._labels import described, head_name, visible
from headscope.viz._scale import GREY, NEGATIVE, POSITIVE, diverges, finite, scale

EDGES = 60


def accepts(array: xr.DataArray) -> bool:
    """Accept edges: the dim edge, with coordinates source_layer and target_layer."""
    return (
        array.dtype.kind in "fiub"
        and array.dims == ("edge",)
        and {"source_layer", "target_layer"} <= set(array.coords)
    )


def figure(
    array: xr.DataArray, *, lower: Bound = None, upper: Bound = None, fit: bool = False
) -> Any:
    """Draw weighted edges between nodes, the strongest 60 of them.

    Width is the size of the weight; negative edges are dotted as well as blue.

    The array has the dim edge. The coordinates ``source_layer``, ``source_head``,
    ``source_feature`` and the same with ``target_`` name the ends; layer is needed, the others are
    used when present.

    >>> ends = {"source_layer": ("edge", [0]), "source_head": ("edge", [1]),
    ...         "target_layer": ("edge", [1]), "target_head": ("edge", [2])}
    >>> figure(xr.DataArray([0.5], dims="edge", coords=ends, name="flow")).data[-1].text
    ('L0H1', 'L1H2')
    """
    weights = finite(array)
    strength = np.abs(np.nan_to_num(weights))
    ranked = np.argsort(-strength, kind="stable")
    order = ranked[np.isfinite(weights[ranked])].tolist()
    notes = ["negative edges are dotted"] if np.nanmin(weights, initial=0.0) < 0 else []
    if len(order) > EDGES:
        notes.append(f"strongest {EDGES} of {len(order)} edges")
    order = order[:EDGES]
    ends = {side: _ends(array, side) for side in ("source", "target")}
    used = {ends[side][index] for side in ends for index in order}
    nodes = sorted(used)
    place = _places(nodes)
    layers = sorted({layer for layer, *_ in used})
    fig = frame(
        array,
        height=max(360, 110 + 80 * len(layers)),
        notes=notes,
        xaxis={"visible": False, "range": [-0.08, 1.08]},
        yaxis={
            "title": {"text": "layer"},
            "tickvals": layers,
            "ticktext": [f"L{layer}" if layer >= 0 else "" for layer in layers],
            "autorange": "reversed",
            "zeroline": False,
        },
        hovermode="closest",
        showlegend=False,
    )
    largest = max((abs(float(weights[index])) for index in order), default=1.0) or 1.0
    bounds = [] if lower is None or upper is None else [finite(lower), finite(upper)]
    middles: list[tuple[float, float, float, str]] = []
    for index in order:
        start, end = ends["source"][index], ends["target"][index]
        (x0, y0), (x1, y1), weight = place[start], place[end], float(weights[index])
        fig.add_trace(
            go.Scatter(
                x=[x0, x1],
                y=[y0, y1],
                mode="lines",
                hoverinfo="skip",
                line={
                    "width": 0.6 + 5 * abs(weight) / largest,
                    "color": NEGATIVE if weight < 0 else POSITIVE if diverges(array) else GREY,
                    "dash": "solid" if weight >= 0 else "dot",
                },
                opacity=0.7,
            )
        )
        interval = [side[index] for side in bounds]
        words = described(array, f"{_name(start)} → {_name(end)}", weight, interval)
        # Off the middle, where edges of heads below each other would share one spot.
        middles.append((x0 + 0.6 * (x1 - x0), y0 + 0.6 * (y1 - y0), weight, words))
    x, y, shown, hover = zip(*middles, strict=True) if middles else ((), (), (), ())
    fig.add_trace(
        go.Scatter(
            x=x,
            y=y,
            mode="markers",
            marker={
                "size": 8,
                **marked(shown, scale(array, fit)),
                "colorbar": colour_bar(array),
                "line": {"width": 1, "color": "rgba(128,128,128,0.9)"},
            },
            hovertext=hover,
            hovertemplate="%{hovertext}<extra></extra>",
            name="edges",
        )
    )
    fig.add_trace(
        go.Scatter(
            x=[place[node][0] for node in nodes],
            y=[place[node][1] for node in nodes],
            mode="markers+text",
            marker={"size": 16, "color": "#5b6470", "line": {"width": 1, "color": "#c9ced6"}},
            text=[_name(node) for node in nodes],
            textposition="top center",
            hovertemplate="%{text}<extra></extra>",
            name="nodes",
        )
    )
    return fig


Node = tuple[int, int, int, str]


def _ends(array: xr.DataArray, side: str) -> list[Node]:
    count = array.sizes["edge"]

    def column(name: str, absent: object) -> list[Any]:
        return array.coords[name].values.tolist() if name in array.coords else [absent] * count

    numbers = (column(f"{side}_{part}", -1) for part in ("layer", "head", "feature"))
    return [
        (int(layer), int(head), int(feature), str(word))
        for layer, head, feature, word in zip(*numbers, column(side, ""), strict=True)
    ]


def _name(node: Node) -> str:
    layer, head, feature, word = node
    if word:
        return visible(word)
    name = head_name(layer, head) if head >= 0 else f"L{layer}"
    return f"{name}·{feature}" if feature >= 0 else name


def _places(nodes: list[Node]) -> dict[Node, tuple[float, float]]:
    """Put heads of one number below each other; nodes that are no heads are spread evenly."""
    heads = sorted({head for _, head, feature, _ in nodes if head >= 0 and feature < 0})
    found: dict[Node, tuple[float, float]] = {}
    for layer in sorted({layer for layer, *_ in nodes}):
        row = [node for node in nodes if node[0] == layer]
        aligned = all(node[1] >= 0 and node[2] < 0 for node in row)
        slots = [heads.index(node[1]) for node in row] if aligned else list(range(len(row)))
        count = len(heads) if aligned else len(row)
        for slot, node in zip(slots, row, strict=True):
            # A slight slant keeps the names of neighbours from running into each other.
            found[node] = ((slot + 1) / (count + 1), layer + (0.12 if slot % 2 else -0.12))
    return found

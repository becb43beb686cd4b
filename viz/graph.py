"""Graph: which heads or features feed which, layer 0 at the top."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from headscope.viz import _graph_layout as layout
from headscope.viz._frame import Bound, frame
from headscope.viz._graph_layout import Node
from headscope.viz._labels import described, head_name, measured, units, visible
from headscope.viz._scale import GREY, NEGATIVE, POSITIVE, Array, diverges, finite

EDGES = 60
# Lines have one of so many widths in pixels.
WIDTHS = np.linspace(1.1, 6.7, 8)
# Ground and text of the names of heads (and tokens, features), of other nodes, and of marked ones.
HEAD, OTHER, RING = ("#37424e", "#ffffff"), ("#c3cad3", "#1b2026"), "#e8b400"
BORDER = "#8a929c"
"""Seen on light and on dark pages."""


def accepts(array: xr.DataArray) -> bool:
    """Accept edges: the dim edge, with coordinates source_layer and target_layer."""
    return (
        array.dtype.kind in "fiub"
        and array.dims == ("edge",)
        and {"source_layer", "target_layer"} <= set(array.coords)
    )


def figure(
    array: xr.DataArray,
    *,
    lower: Bound = None,
    upper: Bound = None,
    fit: bool = False,
    edges: int = EDGES,
    marked: Collection[str] = (),
) -> Any:
    """Draw weighted edges between nodes, the strongest ones.

    The wider a line, the larger the absolute weight; where signs mean something, negative edges are
    dotted as well as blue. Every edge has a mark with the letter of its target input, q, k or v;
    hovering it shows the weight.

    The array has the dim edge. The coordinates ``source_layer``, ``source_head``,
    ``source_feature`` and the same with ``target_`` name the ends; layer is needed, the others and
    ``input`` are used when present. At most ``edges`` are drawn. Nodes with the names ``marked``
    are ringed.

    >>> ends = {"source_layer": ("edge", [0]), "source_head": ("edge", [1]),
    ...         "target_layer": ("edge", [1]), "target_head": ("edge", [2])}
    >>> figure(xr.DataArray([0.5], dims="edge", coords=ends, name="flow")).data[-1].text
    ('L0H1', 'L1H2')
    """
    weights = finite(array)
    ranked = np.argsort(-np.abs(np.nan_to_num(weights)), kind="stable")
    present = ranked[np.isfinite(weights[ranked])]
    order = present[:edges].tolist()
    sources, targets = (ends(array, side) for side in ("source", "target"))
    links = [(sources[at], targets[at]) for at in order]
    nodes = sorted({node for link in links for node in link})
    located = layout.positions(nodes)
    rows = layout.rows(nodes)
    fig = frame(
        array,
        height=max(300, 110 + layout.ROW * len(rows)),
        notes=_notes(array, weights[order], present.size),
        xaxis={"visible": False, "range": [-0.04, 1.04]},
        yaxis={
            "title": {"text": "layer"},
            "tickvals": list(range(len(rows))),
            "ticktext": _row_names(nodes),
            "range": [len(rows) - 0.5, -0.5],
            "zeroline": False,
        },
        hovermode="closest",
        legend={"orientation": "h", "x": 0, "y": 0, "yanchor": "top", "itemclick": False,
                "itemdoubleclick": False},
        annotations=[_name(node, located[node], marked) for node in nodes],
    )  # fmt: skip
    drawn = layout.curves(links, located)
    signed = diverges(array) or bool((weights[order] < 0).any())
    for trace in _lines(weights[order], drawn, signed):
        fig.add_trace(trace)
    bounds = [] if lower is None or upper is None else [finite(lower), finite(upper)]
    inputs = _inputs(array)
    x, y = layout.marks(drawn, located).T.tolist()
    fig.add_trace(
        go.Scatter(
            x=x,
            y=y,
            mode="markers+text",
            marker={
                "size": [14 if inputs[at] else 8 for at in order],
                # Plotly's own is less where sizes differ, and letters could not be read.
                "opacity": 1,
                "color": [_colour(weights[at], signed) for at in order],
            },
            text=[inputs[at] for at in order],
            textfont={"size": 10, "color": "#000000"},
            textposition="middle center",
            hovertext=[
                described(array, edge_name(sources[at], targets[at], inputs[at]), weights[at],
                          [side[at] for side in bounds])
                for at in order
            ],
            hovertemplate="%{hovertext}<extra></extra>",
            showlegend=False,
            name="edges",
        )
    )  # fmt: skip
    fig.add_trace(
        go.Scatter(
            x=[located[node][0] for node in nodes],
            y=[located[node][1] for node in nodes],
            mode="markers",
            # What is seen of a node is its name, which is drawn above; this takes the mouse.
            marker={"size": 30, "color": "rgba(0,0,0,0)"},
            text=[node_name(node) for node in nodes],
            hovertext=[_sums(array, node, links, weights[order]) for node in nodes],
            hovertemplate="%{hovertext}<extra></extra>",
            hoverlabel={"bgcolor": HEAD[0], "font": {"color": HEAD[1]}},
            showlegend=False,
            name="nodes",
        )
    )
    return fig


def _notes(array: xr.DataArray, weights: Array, count: int) -> list[str]:
    """Return notes on what the lines mean, and how many are left out."""
    notes = []
    if weights.size:
        widest = measured(float(np.abs(weights).max()), units(array))
        notes.append(f"width: absolute value, up to {widest}")
    if _inputs_known(array):
        notes.append("q, k, v: input of the head that the edge leads to")
    if count > weights.size:
        notes.append(f"strongest {weights.size} of {count} edges")
    if array.size > count:
        notes.append(f"{array.size - count} of {array.size} edges not measured")
    return notes


def _inputs_known(array: xr.DataArray) -> bool:
    return "input" in array.coords


def _inputs(array: xr.DataArray) -> list[str]:
    """Return the input (q, k, v or empty) that every edge leads to."""
    if not _inputs_known(array):
        return [""] * array.size
    return [str(name) for name in array["input"].values]


def _colour(weight: float, signed: bool) -> str:
    return NEGATIVE if weight < 0 else POSITIVE if signed else GREY


def _lines(weights: Array, drawn: Array, signed: bool) -> list[Any]:
    """Draw the edges of one sign and one width as one line; the widest of a sign is its legend."""
    size = np.abs(weights)
    level = np.rint((len(WIDTHS) - 1) * size / (size.max(initial=0) or 1.0)).astype(int)
    lines = []
    for negative, name in ((False, "positive"), (True, "negative (dotted)")):
        levels = sorted(set(level[(weights < 0) == negative].tolist()), reverse=True)
        for width in levels:
            chosen = (level == width) & ((weights < 0) == negative)
            x, y = layout.joined(drawn[chosen])
            lines.append(
                go.Scatter(
                    x=x,
                    y=y,
                    mode="lines",
                    hoverinfo="skip",
                    line={
                        "width": WIDTHS[width],
                        "color": _colour(-1.0 if negative else 1.0, signed),
                        "dash": "dot" if negative else "solid",
                    },
                    opacity=0.85,
                    name=name,
                    showlegend=signed and width == levels[0],
                )
            )
    # Thin lines last, so that wide ones do not cover them.
    return sorted(lines, key=lambda line: -float(line.line.width))


def _name(node: Node, point: tuple[float, float], marked: Collection[str]) -> dict[str, Any]:
    """Write the name of a node on a ground of its own, which lines pass behind."""
    ground, ink = HEAD if node[1] >= 0 or not _is_component(node) else OTHER
    ringed = node_name(node) in marked
    return {
        "x": point[0],
        "y": point[1],
        "text": node_name(node),
        "showarrow": False,
        "font": {"size": 11, "color": ink, "weight": "bold" if ringed else "normal"},
        "bgcolor": ground,
        "bordercolor": RING if ringed else BORDER,
        "borderwidth": 3 if ringed else 1,
        "borderpad": 3,
    }


def _sums(
    array: xr.DataArray, node: Node, links: Sequence[tuple[Node, Node]], weights: Array
) -> str:
    """Return how many edges lead to a node and from it, of those drawn, and their sums."""
    lines = [f"<b>{node_name(node)}</b>"]
    for side, direction in ((1, "in"), (0, "out")):
        drawn = [
            weight
            for link, weight in zip(links, weights.tolist(), strict=True)
            if link[side] == node
        ]
        if drawn:
            lines.append(
                f"{direction}: {len(drawn)} drawn, sum {measured(sum(drawn), units(array))}"
            )
    return "<br>".join(lines)


def ends(array: xr.DataArray, side: str) -> list[Node]:
    """Return one end of every edge: layer, head, feature (-1 where it has none), and its name."""
    count = array.sizes["edge"]

    def column(name: str, absent: object) -> list[Any]:
        return array.coords[name].values.tolist() if name in array.coords else [absent] * count

    numbers = (column(f"{side}_{part}", -1) for part in ("layer", "head", "feature"))
    return [
        (int(layer), int(head), int(feature), str(token))
        for layer, head, feature, token in zip(*numbers, column(side, ""), strict=True)
    ]


def node_name(node: Node) -> str:
    """Return the name of a node as figures do."""
    layer, head, feature, token = node
    if token:
        return visible(token)
    name = head_name(layer, head) if head >= 0 else f"L{layer}"
    return f"{name}·{feature}" if feature >= 0 else name


def edge_name(source: Node, target: Node, into: str = "") -> str:
    """Return the name of an edge, and the input that it leads to.

    >>> edge_name((0, 1, -1, ""), (2, 3, -1, ""), "q")
    'L0H1 → L2H3.q'
    """
    return f"{node_name(source)} → {node_name(target)}{f'.{into}' if into else ''}"


def _is_component(node: Node) -> bool:
    """Return whether a name is that of an MLP, the embedding or the logits, not a token."""
    return node[3] in {"embedding", "logits"} or node[3].endswith(".mlp")


def _row_names(nodes: list[Node]) -> list[str]:
    """Return the names of rows: their layer, unless they are no head."""
    by_row: dict[tuple[int, bool], list[Node]] = {row: [] for row in layout.rows(nodes)}
    for node in nodes:
        by_row[layout.row_of(node)].append(node)
    return [
        "" if all(map(_is_component, members)) else f"L{layer}"
        for (layer, _), members in by_row.items()
    ]

"""Where a graph's nodes stand and how its edges run, so that no edge crosses a name."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from headscope.viz._scale import Array

Node = tuple[int, int, int, str]
"""Layer, head and feature (-1 where it has none), and a name of its own (empty for a head)."""

# Pixels. The width of the page is not known, so that of a narrow one is taken.
WIDTH, ROW = 640, 56
# Half of the room that a name takes, and how far two marks of edges are apart.
NAME, MARK = np.array([30.0, 14.0]), 15.0
# How far an edge is bent at its middle, in the order in which bends are tried.
BENDS = (0, 16, -16, 32, -32, 52, -52, 76, -76)
POINTS = 15
"""Points of a curve, the ends included."""


def rows(nodes: Sequence[Node]) -> list[tuple[int, bool]]:
    """Return the rows, the first at the top: a layer, and whether its nodes are no heads.

    An MLP reads what the heads of its layer write, so it stands below them.

    >>> rows([(0, 3, -1, ""), (0, -1, -1, "L0.mlp"), (2, 1, -1, "")])
    [(0, False), (0, True), (2, False)]
    """
    return sorted({row_of(node) for node in nodes})


def row_of(node: Node) -> tuple[int, bool]:
    """Return the row of a node."""
    return node[0], node[1] < 0


def positions(nodes: Sequence[Node]) -> dict[Node, tuple[float, float]]:
    """Return the position of every node: from 0 to 1 across, and the row down.

    Heads of one number stand below each other, and MLPs in a column of their own; what is alone in
    its row stands in the middle, and what is neither is spread evenly.

    >>> nodes = [(0, 3, -1, ""), (0, 5, -1, ""), (0, 8, -1, ""), (1, -1, -1, "logits")]
    >>> list(positions(nodes).values())
    [(0.25, 0.14), (0.5, -0.14), (0.75, 0.14), (0.5, 1.0)]
    """
    numbers = sorted({head for _, head, feature, _ in nodes if head >= 0 and feature < 0})
    with_heads = {layer for layer, head, *_ in nodes if head >= 0}
    mlps = any(row_of(node)[1] and node[0] in with_heads for node in nodes)
    columns = len(numbers) + mlps
    located: dict[Node, tuple[float, float]] = {}
    for down, row in enumerate(rows(nodes)):
        members = sorted(node for node in nodes if row_of(node) == row)
        if all(head >= 0 and feature < 0 for _, head, feature, _ in members):
            slots, count = [numbers.index(node[1]) for node in members], columns
        elif len(members) == 1 and _is_mlp(members[0]) and mlps:
            slots, count = [columns - 1], columns
        else:
            slots, count = list(range(len(members))), len(members)
        for at, (slot, node) in enumerate(zip(slots, members, strict=True)):
            # A slight slant keeps the names of neighbours from running into each other.
            slant = 0.0 if len(members) == 1 else -0.14 if at % 2 else 0.14
            located[node] = ((slot + 1) / (count + 1), down + slant)
    return located


def _is_mlp(node: Node) -> bool:
    return node[3].endswith(".mlp")


def curves(
    links: Sequence[tuple[Node, Node]], located: Mapping[Node, tuple[float, float]]
) -> Array:
    """Return the points of every edge (edge, point, axis), in the units of `positions`.

    Edges are bent as little as keeps them off the names of other nodes and off earlier edges
    between the same two nodes.
    """
    unit = np.array([WIDTH, ROW], dtype=float)
    nodes = list(located)
    pixels = np.array([located[node] for node in nodes]).reshape(-1, 2) * unit
    index = {node: at for at, node in enumerate(nodes)}
    drawn_between: dict[frozenset[Node], list[Array]] = defaultdict(list)
    drawn = np.empty((len(links), POINTS, 2))
    for at, (source, target) in enumerate(links):
        start, end = pixels[index[source]], pixels[index[target]]
        tried = np.stack([_curve(start, end, bend) for bend in BENDS])
        others = np.delete(pixels, [index[source], index[target]], axis=0)
        near = np.abs(tried[:, :, None] - others) / NAME
        cost = (near.max(-1) < 1).sum((1, 2)).astype(float)
        for curve in drawn_between[frozenset((source, target))]:
            distances = np.linalg.norm(tried[:, POINTS // 2] - curve[POINTS // 2], axis=-1)
            cost += np.where(distances < MARK, np.inf, 0)
        chosen = tried[int(cost.argmin())]
        drawn_between[frozenset((source, target))].append(chosen)
        drawn[at] = chosen / unit
    return drawn


def _curve(start: Array, end: Array, bend: float) -> Array:
    """Return the points of a parabola whose middle is so many pixels off the straight line."""
    chord = end - start
    normal = np.array([-chord[1], chord[0]]) / (np.linalg.norm(chord) or 1.0)
    middle = (start + end) / 2 + 2 * bend * normal
    share = np.linspace(0, 1, POINTS)[:, None]
    return np.asarray((1 - share) ** 2 * start + 2 * share * (1 - share) * middle + share**2 * end)


def marks(drawn: Array, located: Mapping[Node, tuple[float, float]]) -> Array:
    """Return a point of every edge (edge, axis) off the names and off the other edges' points."""
    unit = np.array([WIDTH, ROW], dtype=float)
    nodes = np.array(list(located.values())).reshape(-1, 2) * unit
    middle = POINTS // 2
    steps = range(1, middle - 1)
    # From the middle outwards.
    order = [middle, *(at for step in steps for at in (middle + step, middle - step))]
    chosen: list[Array] = []
    for curve in drawn * unit:
        points = curve[order]
        near = np.abs(points[:, None] - nodes) / (NAME + MARK / 2)
        cost = (near.max(-1) < 1).sum(1).astype(float)
        if chosen:
            distances = np.linalg.norm(points[:, None] - np.array(chosen), axis=-1)
            cost += (distances < MARK).sum(1)
        chosen.append(points[int(cost.argmin())])
    return np.asarray(np.array(chosen).reshape(-1, 2) / unit)


def joined(drawn: Array) -> tuple[list[float | None], list[float | None]]:
    """Return the coordinates of several curves as one line with gaps.

    >>> joined(np.array([[[0.0, 1.0], [2.0, 3.0]], [[4.0, 5.0], [6.0, 7.0]]]))
    ([0.0, 2.0, None, 4.0, 6.0], [1.0, 3.0, None, 5.0, 7.0])
    """
    x, y = ([value for curve in drawn[..., axis].tolist() for value in (*curve, None)]
            for axis in (0, 1))  # fmt: skip
    return x[:-1], y[:-1]

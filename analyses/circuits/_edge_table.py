"""Edges as the coordinates of a result, and the nodes that they connect."""

import numpy as np

from headscope.analyses._interventions.edge_graph import EdgeGraph

Column = tuple[str, list[str] | list[int]]


def coordinates(graph: EdgeGraph, edges: list[tuple[int, int]]) -> dict[str, Column]:
    """Return the coordinates of edges: layer, head and name of both ends, and the input."""
    columns: dict[str, list[str] | list[int]] = {}
    nodes = {
        "source": [graph.sources[source] for _, source in edges],
        "target": [graph.owners[target] for target, _ in edges],
    }
    for side, names in nodes.items():
        placed = [graph.layer_and_head(name) for name in names]
        columns[side] = names
        columns[f"{side}_layer"] = [layer for layer, _ in placed]
        columns[f"{side}_head"] = [head for _, head in placed]
    columns["input"] = [
        graph.targets[target][len(graph.owners[target]) + 1 :] for target, _ in edges
    ]
    return {name: ("edge", values) for name, values in columns.items()}


def head_sources(graph: EdgeGraph) -> np.ndarray:
    """Return the sources that are heads (layer, head)."""
    return np.array(
        [graph.sources_before(layer) + np.arange(graph.heads) for layer in range(graph.layers)]
    )


def mlp_sources(graph: EdgeGraph) -> np.ndarray:
    """Return the sources that are MLPs (layer,)."""
    return np.array([graph.sources_before(layer) + graph.heads for layer in range(graph.layers)])

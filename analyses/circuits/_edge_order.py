"""The order in which edges join a circuit, from its logits backwards."""

import heapq

import numpy as np
from numpy.typing import NDArray

from headscope.analyses._interventions.edge_graph import EdgeGraph


def greedy_order(graph: EdgeGraph, scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """Order all edges (place; target, source) so that every first few are a circuit.

    An edge can join once its target's node has: the logits first, then whatever the strongest
    edges lead to. The first n are the circuit of n edges.

    Source: Hanna et al., Have Faith in Faithfulness (2403.17806).
    """
    strength = np.where(graph.edges, np.abs(np.nan_to_num(scores)), -1.0)
    # The edges into each node, its strongest input first.
    into: dict[str, list[int]] = {}
    for target, owner in enumerate(graph.owners):
        into.setdefault(owner, []).append(target)
    joined_edges: list[tuple[int, int]] = []
    waiting: list[tuple[float, int, int]] = []
    joined: set[str] = set()

    def join(node: str) -> None:
        joined.add(node)
        for target in into.get(node, ()):
            for source in range(int(graph.visible[target])):
                heapq.heappush(waiting, (-float(strength[target, source]), target, source))

    join(graph.owners[-1])
    while waiting:
        _, target, source = heapq.heappop(waiting)
        joined_edges.append((target, source))
        if graph.sources[source] not in joined:
            join(graph.sources[source])
    return np.array(joined_edges, dtype=np.int64).reshape(-1, 2)


def circuit(graph: EdgeGraph, order: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Return the circuit of the first so many edges (target, source), without loose ends."""
    kept = np.zeros_like(graph.edges)
    kept[tuple(order[:count].T)] = True
    return graph.reduced(kept)

"""Rollout and max-flow through the layers of averaged attention maps."""

from collections.abc import Sequence

import networkx as nx
import numpy as np

from headscope.analyses._stats.bootstrap import Array


def mix(maps: Array) -> Array:
    """Average the heads and mix in the residual stream: ``Â = rownorm(mean_h A + I)``.

    From (layer, head, query, key) to (layer, query, key), rows summing to one.

    Source: Abnar & Zuidema, Quantifying Attention Flow in Transformers (2005.00928).
    """
    mixed = maps.mean(1) + np.eye(maps.shape[-1])
    return np.asarray(mixed / mixed.sum(-1, keepdims=True))


def rollout(mixed: Array) -> Array:
    """Multiply the mixed maps: ``R_1 = Â_1``, ``R_l = Â_l R_{l−1}``."""
    total = mixed[0]
    for layer in mixed[1:]:
        total = layer @ total
    return np.asarray(total)


def flow(mixed: Array, queries: Sequence[int] | None = None) -> Array:
    """Return the maximum flow from each output position to each input position, rows normalised.

    The network has a node per layer boundary and position; the edge from (l, i) to (l − 1, j) has
    the capacity ``Â_l[i, j]``. One max-flow problem per pair of positions: short prompts only.

    Output positions are all, unless ``queries`` names some.

    Source: Abnar & Zuidema (2005.00928).
    """
    layers, size = mixed.shape[0], mixed.shape[1]
    graph = nx.DiGraph()
    for layer in range(layers):
        for query, key in zip(*np.nonzero(mixed[layer] > 0), strict=True):
            graph.add_edge(
                (layer + 1, int(query)), (layer, int(key)), capacity=float(mixed[layer, query, key])
            )
    wanted = range(size) if queries is None else queries
    values = np.zeros((len(wanted), size))
    for row, query in enumerate(wanted):
        # Only what the query reaches can carry its flow; the rest only slows the search.
        source = (layers, query)
        reached = graph.subgraph({source} | nx.descendants(graph, source))
        for key in range(size):
            if (0, key) in reached:
                values[row, key] = nx.maximum_flow_value(
                    reached, source, (0, key), flow_func=nx.algorithms.flow.preflow_push
                )
    return np.asarray(values / values.sum(-1, keepdims=True))

"""Circuits as graphs of networkx, and as files that graph programs read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from headscope.analyses.comparison.circuit import Circuit
from headscope.kernels.errors import InvalidInput
from headscope.probes.storage.dataset_file import write_text

if TYPE_CHECKING:
    import networkx as nx

SUFFIXES = (".json", ".graphml")


def to_graph(circuit: Circuit) -> nx.MultiDiGraph:
    """Return a circuit as a graph: edges with their input (their key), ``weight`` and ``sign``.

    Examples
    --------
    >>> import numpy as np
    >>> edges = {"L0H1->L1H0.q": 0.5, "L0H1->L1H0.k": -0.25}
    >>> circuit = Circuit(((0, 1), (1, 0)), np.ones((2, 2)), edges=edges)
    >>> list(to_graph(circuit).edges(keys=True, data="weight"))
    [('L0H1', 'L1H0', 'q', 0.5), ('L0H1', 'L1H0', 'k', -0.25)]
    """
    import networkx as nx

    graph = nx.MultiDiGraph(provenance=json.dumps(dict(circuit.provenance), sort_keys=True))
    score = {
        name: float(circuit.scores[head])
        for name, head in zip(circuit.labels, circuit.heads, strict=True)
    }
    for node in circuit.nodes:
        graph.add_node(node, **({"score": score[node]} if node in score else {}))
    for (source, target, into), weight in zip(circuit.ends, circuit.edges.values(), strict=True):
        graph.add_edge(
            source, target, key=into, input=into, weight=weight, sign=-1 if weight < 0 else 1
        )
    return graph


def export(circuit: Circuit, path: str | os.PathLike[str]) -> None:
    """Write a circuit for graph programs: GraphML, or the node-link JSON of networkx and D3.

    The suffix says which: ``.graphml`` or ``.json``. `save` keeps all of a circuit instead.
    """
    import networkx as nx

    suffix, graph = Path(path).suffix, to_graph(circuit)
    if suffix not in SUFFIXES:
        raise InvalidInput(f"path: a file that ends in {suffix!r}; use {' or '.join(SUFFIXES)}")
    if suffix == ".json":
        write_text(path, json.dumps(nx.node_link_data(graph, edges="edges"), indent=1) + "\n")
    else:
        write_text(path, "\n".join(nx.generate_graphml(graph)) + "\n")

"""Edges of a model: which node writes into the residual stream, and which input reads it.

Nodes are the embedding, every head, every MLP, and the logits. A head has three inputs, its
queries, keys and values; where query heads share keys and values, each has inputs of its own, so
that a path through the shared projection belongs to the head that reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from headscope.analyses._runtime.results import label
from headscope.kernels.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

EMBEDDING, LOGITS = "embedding", "logits"
PARTS = ("q", "k", "v")


@dataclass(frozen=True)
class EdgeGraph:
    """All edges of a model as a matrix (target, source).

    Sources are the embedding and then, layer by layer, the heads and the MLP. Targets are, layer by
    layer, the queries of all heads, their keys, their values and the MLP, and then the logits. A
    target reads the sources before it, which are the first ones. In ``parallel`` blocks the MLP
    reads what the heads of its layer read.

    Examples
    --------
    >>> graph = EdgeGraph(layers=1, heads=2, parallel=False)
    >>> graph.sources
    ('embedding', 'L0H0', 'L0H1', 'L0.mlp')
    >>> graph.targets[:3], graph.count
    (('L0H0.q', 'L0H1.q', 'L0H0.k'), 13)
    """

    layers: int
    heads: int
    parallel: bool

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Names of the nodes that write."""
        return (EMBEDDING, *(name for layer in range(self.layers) for name in self._nodes(layer)))

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """Names of the inputs that read: of a head with its part, as in ``L5H1.q``."""
        inputs = [
            name
            for layer in range(self.layers)
            for name in (
                *(f"{label((layer, head))}.{part}" for part in PARTS for head in range(self.heads)),
                self._nodes(layer)[-1],
            )
        ]
        return (*inputs, LOGITS)

    @cached_property
    def visible(self) -> NDArray[np.int64]:
        """How many sources every target reads (target,)."""
        inputs = [
            number
            for layer in range(self.layers)
            for number in (
                *[self.sources_before(layer)] * 3 * self.heads,
                self.sources_before_mlp(layer),
            )
        ]
        return np.array([*inputs, len(self.sources)])

    @cached_property
    def edges(self) -> NDArray[np.bool_]:
        """Which pairs are edges (target, source)."""
        return np.arange(len(self.sources)) < self.visible[:, None]

    @property
    def count(self) -> int:
        """Number of edges."""
        return int(self.visible.sum())

    def sources_before(self, layer: int) -> int:
        """Return the number of sources before a layer, which is the index of its first head."""
        return 1 + layer * (self.heads + 1)

    def sources_before_mlp(self, layer: int) -> int:
        """Return the number of sources that the MLP of a layer reads."""
        return self.sources_before(layer) + (0 if self.parallel else self.heads)

    def head_sources(self, layer: int) -> slice:
        """Return the sources that are a layer's heads; its MLP is the one behind them."""
        return slice(self.sources_before(layer), self.sources_before(layer) + self.heads)

    def head_targets(self, layer: int) -> slice:
        """Return the targets that are inputs of a layer's heads."""
        start = layer * (3 * self.heads + 1)
        return slice(start, start + 3 * self.heads)

    def mlp_target(self, layer: int) -> int:
        """Return the target that is a layer's MLP."""
        return int(self.head_targets(layer).stop)

    def target_layer(self, target: int) -> int:
        """Return the layer of a target; that of the logits lies behind the last."""
        return target // (3 * self.heads + 1)

    @cached_property
    def owners(self) -> tuple[str, ...]:
        """Node that every target is an input of (target,)."""
        return tuple(
            name.rpartition(".")[0] if name[-2:] in (".q", ".k", ".v") else name
            for name in self.targets
        )

    def layer_and_head(self, node: str) -> tuple[int, int]:
        """Return layer and head of a node; -1 where it has none.

        The embedding stands before the first layer, the logits behind the last.

        >>> graph = EdgeGraph(layers=2, heads=4, parallel=False)
        >>> graph.layer_and_head("L1H3"), graph.layer_and_head("L1.mlp")
        ((1, 3), (1, -1))
        """
        if node in (EMBEDDING, LOGITS):
            return (-1 if node == EMBEDDING else self.layers), -1
        layer, index = divmod(self.sources.index(node) - 1, self.heads + 1)
        return layer, index if index < self.heads else -1

    def name(self, target: int, source: int) -> str:
        """Name an edge."""
        return f"{self.sources[source]}->{self.targets[target]}"

    def mask(self, names: Iterable[str]) -> NDArray[np.bool_]:
        """Return which edges are named (target, source).

        >>> int(EdgeGraph(1, 2, False).mask(["embedding->L0H1.k", "L0H0->logits"]).sum())
        2
        """
        chosen = np.zeros_like(self.edges)
        sources = {name: at for at, name in enumerate(self.sources)}
        targets = {name: at for at, name in enumerate(self.targets)}
        for name in names:
            source, _, target = name.partition("->")
            if source not in sources or target not in targets:
                raise InvalidInput(f"edges: no {name!r} in this model; write 'L0H1->L2H0.q'")
            at = targets[target], sources[source]
            if not self.edges[at]:
                raise InvalidInput(
                    f"edges: {name} runs backwards; a source stands before its target"
                )
            chosen[at] = True
        return chosen

    def reduced(self, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Drop the edges on no way from the embedding to the logits (target, source).

        With everything else patched they change nothing: what is before a node that reads nothing,
        or behind one that nothing reads, is what it is on the corrupted prompt.
        """
        kept = chosen & self.edges
        node = {name: at for at, name in enumerate(self.sources)}
        owner = np.array([node.get(name, -1) for name in self.owners])
        # Sources stand in order, so one pass each way is enough.
        fed = np.zeros(len(self.sources), dtype=bool)
        fed[0] = True
        for at in range(len(self.targets)):
            kept[at] &= fed
            if owner[at] >= 0:
                fed[owner[at]] |= kept[at].any()
        used = np.zeros(len(self.sources), dtype=bool)
        for at in reversed(range(len(self.targets))):
            if owner[at] >= 0 and not used[owner[at]]:
                kept[at] = False
            used |= kept[at]
        return kept

    def _nodes(self, layer: int) -> list[str]:
        return [*(label((layer, head)) for head in range(self.heads)), f"L{layer}.mlp"]

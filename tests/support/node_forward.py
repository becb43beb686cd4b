"""A GPT-2 in float64, node by node: what a metric becomes when one edge or node is patched."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headscope.probes.constructed.known_circuit import EMBEDDING, LOGITS, Edge

if TYPE_CHECKING:
    from headscope.probes.prompts.tokens import EncodedTask

Outputs = dict[str, Tensor]


class Nodes:
    """The nodes of a GPT-2: the embeddings, the heads and MLPs by layer, the logits."""

    def __init__(self, module: Any) -> None:
        self.module = module.double()
        self.layers, self.heads = module.config.n_layer, module.config.n_head

    def names(self) -> list[str]:
        """Return the nodes that write, in order."""
        return [EMBEDDING, *(name for layer in range(self.layers) for name in self._of(layer))]

    def _of(self, layer: int) -> list[str]:
        return [*(f"L{layer}H{head}" for head in range(self.heads)), f"L{layer}.mlp"]

    def _layer(self, patched: Edge | str) -> int:
        name = patched if isinstance(patched, str) else patched.target
        return self.layers if name == LOGITS else int(re.findall(r"\d+", name)[0])

    def edges(self) -> Iterator[Edge]:
        """Yield every edge: heads of a layer do not read each other, its MLP reads them all."""
        names = self.names()
        for target in names[1:]:
            layer = self._layer(target)
            before = 1 + layer * (self.heads + 1) + (self.heads if "mlp" in target else 0)
            for source in names[:before]:
                yield from (
                    Edge(source, target, side) for side in ("qkv" if "H" in target else " ")
                )
        yield from (Edge(source, LOGITS) for source in names)

    def run(
        self,
        ids: Tensor,
        patched: Edge | str | None = None,
        others: Outputs | None = None,
        clean: Outputs | None = None,
    ) -> tuple[Tensor, Outputs]:
        """Return the logits and the outputs of all nodes.

        ``patched`` is an edge whose target reads, or a node that writes, what ``others`` hold;
        ``clean`` are the outputs without it, which hold in layers before.
        """
        core, outputs = self.module.transformer, {}
        first = 0 if patched is None else self._layer(patched)

        def write(name: str, value: Tensor) -> None:
            outputs[name] = others[name] if others is not None and patched == name else value

        def read(norm: Any, target: str, which: str = "") -> Tensor:
            total = sum(outputs.values())
            edge = patched if isinstance(patched, Edge) else None
            if edge is not None and (edge.target, edge.input.strip()) == (target, which):
                total = total + others[edge.source] - outputs[edge.source]
            return norm(total)

        write(EMBEDDING, core.wte(ids) + core.wpe(torch.arange(ids.shape[1])))
        for layer, block in enumerate(core.h):
            if layer < first:
                assert clean is not None
                outputs |= {name: clean[name] for name in self._of(layer)}
                continue
            heads = {}
            for head in range(self.heads):
                name = f"L{layer}H{head}"
                inputs = {side: read(block.ln_1, name, side) for side in "qkv"}
                heads[name] = self._head(block.attn, head, inputs)
            for name, value in heads.items():
                write(name, value)
            name = f"L{layer}.mlp"
            write(name, block.mlp(read(block.ln_2, name)))
        return self.module.lm_head(read(core.ln_f, LOGITS)), outputs

    def _head(self, attention: Any, head: int, inputs: dict[str, Tensor]) -> Tensor:
        width = self.module.config.n_embd
        size = width // self.heads
        query, key, value = (
            inputs[each] @ attention.c_attn.weight[:, at : at + size]
            + attention.c_attn.bias[at : at + size]
            for each, at in zip("qkv", range(head * size, 3 * width, width), strict=True)
        )
        scores = query @ key.transpose(1, 2) / size**0.5
        future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        return weights @ value @ attention.c_proj.weight[head * size : (head + 1) * size]


@torch.no_grad()
def effects(
    nodes: Nodes, task: EncodedTask, score: Callable[[Tensor, list[int]], Tensor]
) -> tuple[dict[str, float], dict[Edge, float]]:
    """Return by how much patching each head or MLP, and each edge, moves the mean metric."""
    lengths = sorted({len(ids) for ids in task.ids})
    moved: dict[Any, float] = {}
    for length in lengths:
        rows = [row for row, ids in enumerate(task.ids) if len(ids) == length]
        clean, corrupted = (
            torch.tensor([side[row] for row in rows]) for side in (task.ids, task.corrupted_ids)
        )
        logits, outputs = nodes.run(clean)
        intact = score(logits, rows)
        others = nodes.run(corrupted)[1]
        for patched in (*nodes.names()[1:], *nodes.edges()):
            change = (intact - score(nodes.run(clean, patched, others, outputs)[0], rows)).sum()
            moved[patched] = moved.get(patched, 0.0) + float(change) / len(task.ids)
    return (
        {name: value for name, value in moved.items() if isinstance(name, str)},
        {edge._replace(input=edge.input.strip()): value for edge, value in moved.items()
         if isinstance(edge, Edge)},
    )  # fmt: skip

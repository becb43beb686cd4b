"""Edges scored by gradients: what every removed edge changes to first order, all by one pass back.

The score of an edge is ``(z'_u − z_u) · ∂m/∂in_v``, summed over positions: what its source writes
on the corrupted prompt less what it writes on the clean one, times the gradient in what its target
reads, so that it estimates the metric with the edge patched less the metric without. The gradient
goes back block by block; of each it is contracted with all sources' differences by one product, and
only the matrix of scores is kept. The query heads of a group share keys and values: the attention
of one of them at a time gives the gradient in the keys and values as that head reads them, and the
shared projection takes it back.

Sources: Syed et al., Attribution Patching Outperforms Automated Circuit Discovery (2310.10348);
Hanna et al., Have Faith in Faithfulness (2403.17806).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analyses._interventions.block_parts import PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headscope.analyses._interventions.block_parts import BlockParts, Stream
    from headscope.analyses._interventions.edge_patching import EdgeRun

METHODS = ("eap", "eap_ig", "clean_corrupted")
Scores = Float[Tensor, "row target source"]


def attribute(run: EdgeRun, loss: Callable[[Tensor], Tensor], method: str, steps: int) -> Scores:
    """Score all edges by the gradient of ``loss``, one number a row of the logits.

    The gradient is, by ``method``: that on the clean prompts (``eap``); the mean over embeddings
    ``e' + k/m (e − e')``, k = 1 to m = ``steps``, from the corrupted to the clean ones
    (``eap_ig``); or the mean of clean and corrupted (``clean_corrupted``).
    """
    differences = run.difference.flatten(2).permute(1, 2, 0)
    shape = (len(differences), *run.graph.edges.shape)
    total = differences.new_zeros(shape, dtype=torch.float32)
    shares = {
        "eap": [1.0],
        "eap_ig": [number / steps for number in range(1, steps + 1)],
        "clean_corrupted": [0.0, 1.0],
    }[method]
    for share in shares:
        streams: Sequence[Stream] = run.streams
        if share < 1:
            streams = run.forward(run.corrupted[0] - share * run.difference[0])
        _accumulate(run, streams, loss, differences, total)
    return total.div_(len(shares))


def _accumulate(
    run: EdgeRun,
    streams: Sequence[Stream],
    loss: Callable[[Tensor], Tensor],
    differences: Float[Tensor, "row numbers source"],
    total: Scores,
) -> None:
    """Add the scores by the gradient on a pass, given its residual stream before every block."""
    parts, graph = run.parts, run.graph

    def contract(targets: slice, visible: int, slopes: Float[Tensor, "target row ..."]) -> None:
        flat = slopes.transpose(0, 1).flatten(2)
        total[:, targets, :visible] += torch.bmm(flat, differences[:, :, :visible])

    with torch.enable_grad():
        last = streams[-1].detach().requires_grad_()
        value = loss(parts.logits(last, run.ids, run.positions)).sum()
        (slope,) = torch.autograd.grad(value, last)
    contract(slice(len(graph.targets) - 1, None), len(graph.sources), slope[None])
    for layer in reversed(range(graph.layers)):
        stream, mlp = streams[layer], graph.mlp(layer)
        entered = parts.entered(layer, stream)
        heads = HeadGradients(parts, layer, entered)
        read = stream
        if not graph.parallel:
            read = stream + parts.writes(layer, heads.z).sum(1) + parts.constant(layer)
        into_mlp = _pull_mlp(parts, layer, read, slope)
        contract(slice(mlp, mlp + 1), graph.before_mlp(layer), into_mlp[None])
        # What the heads of a sequential block write reaches the stream and the MLP.
        behind = slope if graph.parallel else slope + into_mlp
        through = _pull_norm(parts, layer, stream, heads.pull(behind))
        contract(graph.inputs(layer), graph.first(layer), through)
        slope = slope + into_mlp + through.sum(0)


class HeadGradients:
    """The heads of one layer on a stream, and the gradients in what each of them reads."""

    def __init__(self, parts: BlockParts, layer: int, entered: Stream) -> None:
        self.parts, self.layer = parts, layer
        with torch.enable_grad():
            self.made = [each.detach().requires_grad_() for each in parts.shared(layer, entered)]
            call = parts.attention_call(layer, *self.made)
            self.arrived = [call.query, call.key, call.value]
            self.leaves, outputs = [], []
            for member in range(parts.group):
                own = parts.member(call, member)
                leaf = [each.detach().requires_grad_() for each in (own.query, own.key, own.value)]
                self.leaves.append(leaf)
                outputs.append(
                    replace(own, query=leaf[0], key=leaf[1], value=leaf[2]).attend(PLAIN)["z"]
                )
            self.outputs = outputs
        self.z = torch.stack([each.detach() for each in outputs], dim=2).flatten(1, 2)

    def pull(self, slope: Stream) -> Float[Tensor, "input row position residual"]:
        """Return the gradient in what the projections are given: queries, keys, values by head."""
        parts, group = self.parts, self.parts.group
        pulled = parts.pull_writes(self.layer, slope)
        by_member = torch.unflatten(pulled, 1, (-1, group)).unbind(2)
        slopes = [
            torch.autograd.grad(output, leaf, each)
            for output, leaf, each in zip(self.outputs, self.leaves, by_member, strict=True)
        ]
        found = []
        for place, part in enumerate("qkv"):
            arrived, made = self.arrived[place], self.made[place]
            each = [of_member[place] for of_member in slopes]
            if part == "q":
                whole = torch.stack(each, dim=2).flatten(1, 2)
                (back,) = torch.autograd.grad(arrived, made, whole, retain_graph=True)
            else:
                # As each member of a group reads them, turned back one member at a time.
                back = torch.stack([
                    torch.autograd.grad(arrived, made, one, retain_graph=True)[0] for one in each
                ], dim=3).flatten(2, 3)  # fmt: skip
            found.append(parts.pull_projection(self.layer, part, back))
        return torch.cat(found)


def _pull_mlp(parts: BlockParts, layer: int, read: Stream, slope: Stream) -> Stream:
    with torch.enable_grad():
        leaf = read.detach().requires_grad_()
        (back,) = torch.autograd.grad(parts.mlp(layer, leaf), leaf, slope)
    return back


def _pull_norm(
    parts: BlockParts, layer: int, stream: Stream, slopes: Float[Tensor, "input row _ _"]
) -> Float[Tensor, "input row position residual"]:
    """Take gradients behind the norm before it, for every input of the heads by itself."""
    found = []
    for some in slopes.chunk(3):
        with torch.enable_grad():
            leaf = stream.detach().expand_as(some).flatten(0, 1).requires_grad_()
            entered = parts.entered(layer, leaf)
            (back,) = torch.autograd.grad(entered, leaf, some.flatten(0, 1))
        found.append(torch.unflatten(back, 0, some.shape[:2]))
    return torch.cat(found)

"""Edges scored by gradients: what every removed edge changes to first order, all by one pass back.

The score of an edge is ``(z'_u − z_u) · ∂m/∂in_v``, summed over positions: what its source writes
on the corrupted prompt less what it writes on the clean one, times the gradient in what its target
reads, so that it estimates the metric with the edge patched less the metric without. The gradient
goes back block by block; of each it is contracted with all sources' differences by one product, and
only the matrix of scores is kept. The query heads of a group share keys and values: the attention
of one of them at a time gives the gradient in the keys and values as that head reads them, and the
shared projection takes it back.

Where a norm stands between the heads of a layer and the stream, patching adds
``norm(Σ z + (z'_u − z_u)) − norm(Σ z)`` to what a target reads. Its derivative is the norm's at the
sum of that pass; it is applied to the differences, not to the gradients, of which there are more.

Sources: Syed et al., Attribution Patching Outperforms Automated Circuit Discovery (2310.10348);
Hanna et al., Have Faith in Faithfulness (2403.17806), whose code (EAP-IG-activations) gives every
edge the mean over passes in which any source moves; here, as in Marks et al., Sparse Feature
Circuits (2403.19647), only its own does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analyses._interventions.head_calls import outputs

if TYPE_CHECKING:
    from headscope.analyses._interventions.block_parts import BlockParts
    from headscope.analyses._interventions.edge_graph import EdgeGraph
    from headscope.analyses._interventions.edge_run import EdgeRun
    from headscope.analyses._interventions.head_projections import Inputs, Stream

METHODS = ("eap", "eap_ig", "eap_ig_activations", "clean_corrupted")
Scores = Float[Tensor, "row target source"]
# Takes targets, how many sources they read, and the gradient in what they read.
Contract = Callable[[slice, int, Float[Tensor, "target row position residual"]], None]


def attribute(run: EdgeRun, loss: Callable[[Tensor], Tensor], method: str, steps: int) -> Scores:
    """Score all edges by the gradient of ``loss``, one number a row of the logits.

    The gradient is, by ``method``: that on the clean prompts (``eap``); the mean over embeddings
    ``e' + k/m (e − e')``, k = 1 to m = ``steps``, from the corrupted to the clean ones
    (``eap_ig``); the mean over what the source of the edge writes, from corrupted to clean in as
    many steps, everything before it clean (``eap_ig_activations``; the heads of a layer move
    together); or the mean of clean and corrupted (``clean_corrupted``).
    """
    rows = run.difference.shape[1]
    total = run.difference.new_zeros((rows, *run.graph.edges.shape), dtype=torch.float32)

    def contracting(sources: slice, totals: dict[int, Stream]) -> Contract:
        changes = run.changes(sources, totals).flatten(2).permute(1, 2, 0)

        def contract(
            targets: slice, visible: int, slopes: Float[Tensor, "target row position residual"]
        ) -> None:
            columns = slice(sources.start, max(sources.start, min(sources.stop, visible)))
            flat = slopes.transpose(0, 1).flatten(2)
            read = changes[:, :, : columns.stop - columns.start]
            total[:, targets, columns] += torch.bmm(flat, read)

        return contract

    every = slice(0, len(run.graph.sources))
    between = [number / steps for number in range(1, steps)]
    shares = {"eap": [], "clean_corrupted": [0.0]}.get(method, between)
    for share in shares:
        if method == "eap_ig_activations":
            for layer, sources in _groups(run.graph):
                _move(run, layer, sources, share, loss, contracting)
        else:
            streams, totals = run.forward(run.corrupted[0] - share * run.difference[0])
            _backward(run, streams, loss, contracting(every, totals))
    # The last step is the clean prompt, whichever way led there.
    _backward(run, run.streams, loss, contracting(every, run.totals))
    return total.div_(len(shares) + 1)


def _groups(graph: EdgeGraph) -> Iterator[tuple[int, slice]]:
    """Yield the sources that move together, with their layer: embedding, then heads and MLP."""
    yield -1, slice(0, 1)
    for layer in range(graph.layers):
        heads = graph.head_sources(layer)
        yield from ((layer, heads), (layer, slice(heads.stop, heads.stop + 1)))


def _move(
    run: EdgeRun,
    layer: int,
    sources: slice,
    share: float,
    loss: Callable[[Tensor], Tensor],
    contracting: Callable[[slice, dict[int, Stream]], Contract],
) -> None:
    """Go back on a pass where some sources of a layer write ``z' + share (z − z')``."""
    graph, parts = run.graph, run.parts
    change = (1 - share) * run.difference[sources].sum(0)
    totals: dict[int, Stream] = {}
    if layer in parts.projections.normed and sources == graph.head_sources(layer):
        before = run.totals[layer]
        totals[layer] = before + change
        change = parts.projections.added(layer, totals[layer]) - parts.projections.added(
            layer, before
        )
    stream, contract = run.streams[layer + 1] + change, contracting(sources, totals)
    # In sequential blocks the MLP reads what the heads of its layer write.
    mlp = graph.sources_before(layer + 1) - 1
    read_by_mlp = layer >= 0 and sources.stop <= mlp and not graph.parallel
    if read_by_mlp:
        read = stream - (run.corrupted[mlp] - run.difference[mlp])
        stream = read + parts.mlp(layer, read)
    slope = _backward(run, run.forward(stream, layer + 1)[0], loss, contract, layer + 1)
    if read_by_mlp:
        target = graph.mlp_target(layer)
        into_mlp = _pull_mlp(parts, layer, read, slope)
        contract(slice(target, target + 1), graph.sources_before_mlp(layer), into_mlp[None])


def _backward(
    run: EdgeRun,
    streams: Sequence[Stream],
    loss: Callable[[Tensor], Tensor],
    contract: Contract,
    start: int = 0,
) -> Stream:
    """Return the gradient in the stream before block ``start``; contract that in every target.

    ``streams`` are those before every block from there on, and after the last.
    """
    parts, graph = run.parts, run.graph
    with torch.enable_grad():
        last = streams[-1].detach().requires_grad_()
        value = loss(parts.logits(last, run.ids, run.positions)).sum()
        (slope,) = torch.autograd.grad(value, last)
    contract(slice(len(graph.targets) - 1, len(graph.targets)), len(graph.sources), slope[None])
    for layer in reversed(range(start, graph.layers)):
        stream, mlp = streams[layer - start], graph.mlp_target(layer)
        heads = HeadGradients(parts, layer, parts.entered(layer, stream))
        total = parts.projections.sum_of_writes(layer, heads.z)
        read = stream if graph.parallel else stream + parts.projections.added(layer, total)
        into_mlp = _pull_mlp(parts, layer, read, slope)
        contract(slice(mlp, mlp + 1), graph.sources_before_mlp(layer), into_mlp[None])
        # What the heads of a sequential block write reaches the stream and the MLP.
        behind = slope if graph.parallel else slope + into_mlp
        behind = parts.projections.pull_added(layer, total, behind)
        through = _pull_norm(parts, layer, stream, heads.pull(behind))
        contract(graph.head_targets(layer), graph.sources_before(layer), through)
        slope = slope + into_mlp + through.sum(0)
    return slope


class HeadGradients:
    """The heads of one layer on a stream, and the gradients in what each of them reads."""

    def __init__(self, parts: BlockParts, layer: int, entered: Stream) -> None:
        self.parts, self.layer = parts, layer
        with torch.enable_grad():
            projected = parts.projections.shared(layer, entered)
            self.projected = [values.detach().requires_grad_() for values in projected]
            call = parts.attention_call(layer, *self.projected)
            self.arrived = [call.query, call.key, call.value]
            self.leaves: list[list[Tensor]] = []
            self.outputs: list[Tensor] = []
            for member in range(parts.group):
                member_call = parts.member(call, member)
                read = (member_call.query, member_call.key, member_call.value)
                leaves = [values.detach().requires_grad_() for values in read]
                query, key, value = leaves
                self.leaves.append(leaves)
                self.outputs.append(
                    outputs(replace(member_call, query=query, key=key, value=value))
                )
        self.z = torch.stack([z.detach() for z in self.outputs], dim=2).flatten(1, 2)

    def pull(self, slope: Stream) -> Inputs:
        """Return the gradient in what the projections are given: queries, keys, values by head."""
        parts = self.parts
        by_head = parts.projections.pull_writes(self.layer, slope)
        by_member = torch.unflatten(by_head, 1, (-1, parts.group))
        slopes = [
            torch.autograd.grad(output, leaves, member_slope)
            for output, leaves, member_slope in zip(
                self.outputs, self.leaves, by_member.unbind(2), strict=True
            )
        ]
        pull = self._pull_mixed if self.layer in parts.mixed else self._pull
        parted = zip("qkv", self.arrived, self.projected, zip(*slopes, strict=True), strict=True)
        return torch.cat([pull(*part) for part in parted])

    def _pull(
        self, part: str, arrived: Tensor, projected: Tensor, members: Sequence[Tensor]
    ) -> Inputs:
        """Take gradients in what arrives at the attention back to what the projection is given."""
        if part == "q":
            by_head = torch.stack(tuple(members), dim=2).flatten(1, 2)
            (back,) = torch.autograd.grad(arrived, projected, by_head, retain_graph=True)
        else:
            # As each member of a group reads them, turned back one member at a time.
            back = torch.stack([
                torch.autograd.grad(arrived, projected, member, retain_graph=True)[0]
                for member in members
            ], dim=3).flatten(2, 3)  # fmt: skip
        return self.parts.projections.pull(self.layer, part, back)

    def _pull_mixed(
        self, part: str, arrived: Tensor, projected: Tensor, members: Sequence[Tensor]
    ) -> Inputs:
        """Do the same where a norm takes all heads together: the input of one head at a time."""
        pulled = []
        for head in range(self.parts.model.heads):
            group, member = divmod(head, self.parts.group)
            alone = torch.zeros_like(arrived)
            alone[:, head if part == "q" else group] = members[member][:, group]
            (back,) = torch.autograd.grad(arrived, projected, alone, retain_graph=True)
            pulled.append(self.parts.projections.pull_shared(self.layer, part, back))
        return torch.stack(pulled)


def _pull_mlp(parts: BlockParts, layer: int, read: Stream, slope: Stream) -> Stream:
    """Take the gradient in what an MLP writes back to what it reads."""
    with torch.enable_grad():
        leaf = read.detach().requires_grad_()
        (back,) = torch.autograd.grad(parts.mlp(layer, leaf), leaf, slope)
    return back


def _pull_norm(
    parts: BlockParts, layer: int, stream: Stream, slopes: Float[Tensor, "input row _ _"]
) -> Float[Tensor, "input row position residual"]:
    """Take gradients behind the norm before it, for every input of the heads by itself."""
    pulled = []
    for part in slopes.chunk(3):
        with torch.enable_grad():
            leaf = stream.detach().expand_as(part).flatten(0, 1).requires_grad_()
            entered = parts.entered(layer, leaf)
            (back,) = torch.autograd.grad(entered, leaf, part.flatten(0, 1))
        pulled.append(torch.unflatten(back, 0, part.shape[:2]))
    return torch.cat(pulled)

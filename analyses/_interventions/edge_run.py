"""A batch of prompts run with edges removed: what every target reads then.

Where an edge is removed, its target reads what the source writes on the corrupted prompt instead
of what it writes now. Sources that write straight into the residual stream change it by themselves,
so that all of them are one product with the mask. Where a norm stands between the heads of a layer
and the stream (Gemma 2 and 3, OLMo 2), a target sums them as it reads them and takes the norm of
that: what changes is ``norm(Σ now + Σ removed (corrupted − now)) − norm(Σ now)``. So with no edge
removed it reads the clean prompt and with all removed the corrupted one, which no frozen scale of
the norm would give.

Source: Hanna et al., Have Faith in Faithfulness (2403.17806), whose code evaluates circuits of
Gemma 2 this way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from headscope.analyses._interventions.block_parts import BlockParts
    from headscope.analyses._interventions.edge_graph import EdgeGraph
    from headscope.analyses._interventions.head_projections import Stream

Removed = Bool[Tensor, "variant target source"]
# Numbers of all sources' writes that are held at once, and of the inputs of one layer's heads.
WRITES, INPUTS = 2**25, 2**22


class EdgeRun:
    """One batch of prompts of one length, clean and corrupted, ready to be run with edges removed.

    Attributes
    ----------
    streams
        Clean residual stream before every block and after the last.
    totals
        What the heads of a layer write together on the clean prompts, where a norm takes it.
    corrupted
        What every source writes on the corrupted prompts (source, row, position, residual).
    difference
        The same, less what it writes on the clean ones.
    """

    def __init__(
        self,
        parts: BlockParts,
        graph: EdgeGraph,
        ids: tuple[Tensor, Tensor],
        positions: Int[Tensor, "row question"],
    ) -> None:
        self.parts, self.graph, self.positions = parts, graph, positions
        self.ids = ids[0]
        parts.record(self.ids)
        clean, corrupted = (parts.embed(tokens) for tokens in ids)
        shape = (len(graph.sources), *clean.shape)
        self.corrupted = clean.new_empty(shape)
        self.streams: list[Stream] = []
        self.totals: dict[int, Stream] = {}
        self.rows = {layer: graph.head_sources(layer) for layer in range(graph.layers)}
        last = self._walk(corrupted, self.corrupted)
        self.corrupted_logits = parts.logits(last, ids[1], positions)
        parts.check(self.corrupted_logits, ids[1], positions)
        self.difference = clean.new_empty(shape)
        last = self._walk(clean, self.difference, self.streams, self.totals)
        self.difference.neg_().add_(self.corrupted)
        self.clean_logits = parts.logits(last, ids[0], positions)
        parts.check(self.clean_logits, ids[0], positions)

    def _walk(
        self,
        stream: Stream,
        writes: Float[Tensor, "source ..."],
        streams: list[Stream] | None = None,
        totals: dict[int, Stream] | None = None,
    ) -> Stream:
        """Run all blocks, keeping what each source writes."""
        parts, graph = self.parts, self.graph
        writes[0] = stream
        for layer in range(graph.layers):
            if streams is not None:
                streams.append(stream)
            z = parts.heads(layer, parts.entered(layer, stream))
            rows = self.rows[layer]
            writes[rows] = parts.projections.writes(layer, z).transpose(0, 1)
            total = writes[rows].sum(0)
            if totals is not None and layer in parts.projections.normed:
                totals[layer] = total
            added = parts.projections.added(layer, total)
            mlp_input = stream if graph.parallel else stream + added
            writes[rows.stop] = parts.mlp(layer, mlp_input)
            stream = stream + added + writes[rows.stop]
        if streams is not None:
            streams.append(stream)
        return stream

    def forward(self, stream: Stream, start: int = 0) -> tuple[list[Stream], dict[int, Stream]]:
        """Run the blocks from ``start`` on: `streams` and `totals` from there."""
        streams: list[Stream] = [stream]
        totals: dict[int, Stream] = {}
        for layer in range(start, self.graph.layers):
            streams.append(self.parts.block(layer, streams[-1], totals))
        return streams, totals

    def changes(
        self, sources: slice, totals: dict[int, Stream]
    ) -> Float[Tensor, "source row position residual"]:
        """Return what some sources change of the stream, corrupted less clean, to first order.

        That of heads behind a norm is a small change of what they write together, ``totals``.
        """
        projections, first = self.parts.projections, sources.start
        changes = self.difference[sources]
        if projections.normed:
            changes = changes.clone()
        for layer in projections.normed:
            rows = self.rows[layer]
            if first <= rows.start and rows.stop <= sources.stop:
                pushed = projections.push_added(layer, totals[layer], self.difference[rows])
                changes[rows.start - first : rows.stop - first] = pushed
        return changes

    def logits(self, removed: Removed, start: int = 0) -> Float[Tensor, "batch question vocab"]:
        """Run the batch under every set of removed edges; rows are the prompts, set by set.

        No target before layer ``start`` may have an edge removed.
        """
        parts, graph, times = self.parts, self.graph, len(removed)
        stream = self.streams[start].repeat(times, 1, 1)
        changes = RemovedEdges(self, removed, start, stream)
        for layer in range(start, graph.layers):
            rest = removed[:, graph.head_targets(layer).start :]
            if not bool(rest.any()):
                stream = parts.block(layer, stream)
                continue
            inputs, mlp, rows = graph.head_targets(layer), graph.mlp_target(layer), self.rows[layer]
            if bool(removed[:, inputs].any()):
                streams = changes.read(inputs, graph.sources_before(layer)).add_(stream)
                entered = parts.entered(layer, streams.flatten(0, 1))
                entered = torch.unflatten(entered, 0, streams.shape[:2])
                z = parts.separate_heads(layer, entered)
            else:
                z = parts.heads(layer, parts.entered(layer, stream))
            writes = parts.projections.writes(layer, z).transpose(0, 1)
            total = writes.sum(0)
            changes.write(rows, writes)
            changes.totals[layer] = total
            added = parts.projections.added(layer, total)
            mlp_input = stream if graph.parallel else stream + added
            if bool(removed[:, mlp].any()):
                read = changes.read(slice(mlp, mlp + 1), graph.sources_before_mlp(layer))
                mlp_input = mlp_input + read[0]
            out = parts.mlp(layer, mlp_input)
            changes.write(slice(rows.stop, rows.stop + 1), out[None])
            stream = stream + added + out
        last = len(graph.targets) - 1
        if bool(removed[:, last].any()):
            stream = stream + changes.read(slice(last, None), len(graph.sources))[0]
        ids, positions = (part.repeat(times, 1) for part in (self.ids, self.positions))
        return parts.logits(stream, ids, positions)

    def together(self, start: int, *, deep: bool) -> int:
        """Return how many sets of edges fit in one pass from a layer on."""
        numbers = self.streams[0].numel()
        later_sources = len(self.graph.sources) - self.graph.sources_before(start) if deep else 0
        return max(
            1,
            min(
                INPUTS // (3 * self.graph.heads * numbers),
                WRITES // ((later_sources or 1) * numbers),
            ),
        )


class RemovedEdges:
    """What removed edges change of what targets read, while a batch is run."""

    def __init__(self, run: EdgeRun, removed: Removed, start: int, stream: Stream) -> None:
        self.run, self.removed = run, removed
        self.before = run.graph.sources_before(start)
        self.fixed = run.difference[: self.before].flatten(1)
        self.lacking = removed.to(stream.dtype)
        # What the sources behind the start write on the corrupted prompt, less what they write now.
        self.moved: Tensor | None = None
        if bool(removed[:, :, self.before :].any()):
            size = (len(run.graph.sources) - self.before, *stream.shape)
            self.moved = stream.new_empty(size)
        self.totals = {
            layer: total.repeat(len(removed), 1, 1)
            for layer, total in run.totals.items()
            if layer < start
        }
        # Behind a norm heads change the stream together.
        self.summed = self.lacking.clone() if run.parts.projections.normed else self.lacking
        for layer in run.parts.projections.normed:
            self.summed[:, :, run.rows[layer]] = 0

    def write(self, sources: slice, writes: Float[Tensor, "source batch ..."]) -> None:
        """Take what some sources write now."""
        if self.moved is not None:
            corrupted = self.run.corrupted[sources].repeat(1, len(self.removed), 1, 1)
            self.moved[sources.start - self.before : sources.stop - self.before] = (
                corrupted - writes
            )

    def read(self, targets: slice, visible: int) -> Float[Tensor, "target batch position residual"]:
        """Return what the removed edges of some targets change, which read the first sources."""
        projections = self.run.parts.projections
        change = self._product(self.summed, targets, slice(0, self.before))
        if visible > self.before and self.moved is not None:
            change.add_(self._product(self.summed, targets, slice(self.before, visible)))
        for layer in projections.normed:
            rows = self.run.rows[layer]
            if rows.stop > visible or not bool(self.removed[:, targets, rows].any()):
                continue
            total = self.totals[layer]
            moved = self._product(self.lacking, targets, rows).add_(total)
            change.add_(projections.added(layer, moved)).sub_(projections.added(layer, total))
        return change

    def _product(self, lacking: Tensor, targets: slice, sources: slice) -> Tensor:
        """Sum what the edges from some sources to targets change, all of them before the start."""
        chosen, times = lacking[:, targets, sources], len(lacking)
        if sources.start < self.before or self.moved is None:
            flat = chosen @ self.fixed[sources]
        else:
            rows = self.moved[sources.start - self.before : sources.stop - self.before]
            rows = torch.unflatten(rows, 1, (times, -1)).flatten(2)
            flat = torch.bmm(chosen, rows.transpose(0, 1))
        shape = self.run.streams[0].shape
        return torch.unflatten(flat, -1, shape).transpose(0, 1).flatten(1, 2)

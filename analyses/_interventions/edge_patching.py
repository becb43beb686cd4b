"""Edges patched: every input of a node takes chosen sources from the corrupted prompt.

What a target reads is the sum of what the sources before it wrote. Where an edge is removed, the
target reads what its source wrote on the corrupted prompt, while all others still read what it
writes now. One product with the mask (target, source) a layer does that for all targets at once, so
that a circuit of any number of edges costs about one forward pass. With no edge removed the logits
are those of the clean prompt, with all removed those of the corrupted one.

Source: Goldowsky-Dill et al., Localizing Model Behavior with Path Patching (2304.05969); Conmy et
al., Towards Automated Circuit Discovery (2304.14997).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.analyses._interventions import ablation, block_structure
from headscope.analyses._interventions.ablation import Array
from headscope.analyses._interventions.block_parts import BlockParts, Stream
from headscope.analyses._interventions.edge_graph import EdgeGraph
from headscope.analyses._interventions.removed_edges import Removed, RemovedEdges
from headscope.probes.prompts.prompt_batch import batches

if TYPE_CHECKING:
    from headscope.analyses._interventions.ablation import Measure
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.tokens import EncodedTask

# Numbers of all sources' writes that are held at once, and of the inputs of one layer's heads.
WRITES, INPUTS = 2**25, 2**22
# Arrays of the size of these inputs at once: sum, what enters and leaves the norm, and its steps.
NORMED = 5
# Scores of a batch at once: sum, one product, and the sum with its sign changed.
COPIED = 3
# Bytes that an edge takes while circuits grow: its place in the order, and in the queue before.
ORDERED = 600


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
        positions: Int[Tensor, "row asked"],
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
        streams, totals = [stream], {}
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

    def logits(self, removed: Removed, start: int = 0) -> Float[Tensor, "batch asked vocab"]:
        """Run the batch under every set of removed edges; rows are the prompts, set by set.

        No target before layer ``start`` may have an edge removed.
        """
        parts, graph, times = self.parts, self.graph, len(removed)
        stream = self.streams[start].repeat(times, 1, 1)
        changes = RemovedEdges(self, removed, start, stream)
        for layer in range(start, graph.layers):
            rest = removed[:, graph.inputs(layer).start :]
            if not bool(rest.any()):
                stream = parts.block(layer, stream)
                continue
            inputs, mlp, rows = graph.inputs(layer), graph.mlp(layer), self.rows[layer]
            if bool(removed[:, inputs].any()):
                streams = changes.read(inputs, graph.first(layer)).add_(stream)
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
                read = changes.read(slice(mlp, mlp + 1), graph.before_mlp(layer))
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
        later_sources = len(self.graph.sources) - self.graph.first(start) if deep else 0
        return max(
            1,
            min(
                INPUTS // (3 * self.graph.heads * numbers),
                WRITES // ((later_sources or 1) * numbers),
            ),
        )


class EdgePatching:
    """A task's prompts with edges of a model removed; made by `patching`."""

    def __init__(self, model: Model, task: EncodedTask) -> None:
        self.model, self.task = model, task
        self.parts = BlockParts(model)
        self.graph = EdgeGraph(model.layers, model.heads, self.parts.parallel)
        self._whole: tuple[list[int], EdgeRun] | None = None

    def batches(self) -> Iterator[tuple[list[int], EdgeRun]]:
        """Yield prompts and their run, as many at a time as fit.

        Let a run go before the next is asked for: each holds two arrays of all sources' writes. A
        run that all prompts fit in is kept for the next time.
        """
        if self._whole is not None:
            yield self._whole
            return
        model, task = self.model, self.task
        tokens = batch_tokens(model)
        parts = list(ablation.asked_batches(model, task.ids, task.asked, tokens))
        for prompts, ids, positions in parts:
            corrupted_ids = torch.tensor([list(task.corrupted_ids[at]) for at in prompts])
            pair = (ids.to(model.device), corrupted_ids.to(model.device))
            batch = prompts, EdgeRun(self.parts, self.graph, pair, positions)
            if len(parts) == 1:
                self._whole = batch
            yield batch
            del batch


def batch_tokens(model: Model) -> int:
    """Return how many tokens the writes of all sources are held of."""
    width = int(model.module.config.get_text_config().hidden_size)
    sources = 1 + model.layers * (model.heads + 1)
    return max(1, WRITES // (sources * width))


def memory(model: Model, ids: Sequence[Sequence[int]], *, circuits: bool) -> int:
    """Return the bytes that are held at the peak, beside the model, for prompts of these tokens.

    Writes and their differences on the corrupted prompts, the streams, the inputs of one layer's
    heads, and what their norm makes of them; with ``circuits`` also the writes under removed edges
    and the order of all edges, and else the scores of every prompt. Behind norms the differences
    are held a second time, as the stream sees them.
    """
    normed = block_structure.read(model).normed
    width = int(model.module.config.get_text_config().hidden_size)
    sources, inputs = 1 + model.layers * (model.heads + 1), 3 * model.heads
    parts = list(batches(ids, batch_tokens(model)))
    tokens = max(len(batch) * len(ids[batch[0]]) for batch in parts)
    sets = max(1, INPUTS // (inputs * tokens * width))
    arrays = 3 if circuits or normed else 2
    streams = arrays * sources + model.layers + 1 + NORMED * inputs * sets + len(normed)
    rows = 0 if circuits else len(ids) + COPIED * max(map(len, parts))
    scores = rows * (model.layers * (inputs + 1) + 1) * sources
    edges = EdgeGraph(model.layers, model.heads, parallel=False).count if circuits else 0
    return 4 * (tokens * width * streams + scores) + ORDERED * edges


@contextmanager
def patching(model: Model, task: EncodedTask) -> Iterator[EdgePatching]:
    """Take a model apart, to run a task's prompts with edges removed."""
    split = EdgePatching(model, task)
    with split.parts.running():
        yield split


def score(
    run: EdgeRun, measure: Measure, prompts: Sequence[int], removed: Bool[np.ndarray, "_ _ _"]
) -> Array:
    """Return a measure of one batch with each set of edges removed (prompt, variant)."""
    graph, count = run.graph, len(removed)
    result = np.full((len(prompts), count), np.nan)
    # The first layer that a set changes: what comes before is as on the clean prompts.
    changed = removed.any(-1)
    starts = np.where(changed.any(-1), graph.layer(changed.argmax(-1)), graph.layers)
    for start in sorted({*starts.tolist()}):
        at = np.flatnonzero(starts == start)
        deep = bool(removed[at][:, :, graph.first(start) :].any())
        step = run.together(min(start, graph.layers - 1), deep=deep)
        for variants in np.split(at, range(step, len(at), step)):
            sets = torch.from_numpy(removed[variants]).to(run.streams[0].device)
            logits = run.logits(sets, start)
            positions = run.positions.tolist() * len(variants)
            scores = measure(logits, list(prompts) * len(variants), positions)
            result[:, variants] = scores.double().cpu().numpy().reshape(len(variants), -1).T
    return result

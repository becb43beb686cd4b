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
from jaxtyping import Bool

from headscope.analyses._interventions import ablation, block_structure
from headscope.analyses._interventions.ablation import Array
from headscope.analyses._interventions.block_parts import BlockParts
from headscope.analyses._interventions.edge_graph import EdgeGraph
from headscope.analyses._interventions.edge_run import INPUTS, WRITES, EdgeRun
from headscope.probes.prompts.prompt_batch import batches

if TYPE_CHECKING:
    from headscope.analyses._interventions.ablation import Measure
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.tokens import EncodedTask

# Arrays of the size of these inputs at once: sum, what enters and leaves the norm, and its steps.
NORMED = 5
# Scores of a batch at once: sum, one product, and the sum with its sign changed.
COPIED = 3
# Bytes that an edge takes while circuits grow: its place in the order, and in the queue before.
ORDERED = 600


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
        parts = list(ablation.question_batches(model, task.ids, task.question_positions, tokens))
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
    starts = np.where(changed.any(-1), graph.target_layer(changed.argmax(-1)), graph.layers)
    for start in sorted({*starts.tolist()}):
        at = np.flatnonzero(starts == start)
        deep = bool(removed[at][:, :, graph.sources_before(start) :].any())
        step = run.together(min(start, graph.layers - 1), deep=deep)
        for variants in np.split(at, range(step, len(at), step)):
            sets = torch.from_numpy(removed[variants]).to(run.streams[0].device)
            logits = run.logits(sets, start)
            positions = run.positions.tolist() * len(variants)
            scores = measure(logits, list(prompts) * len(variants), positions)
            result[:, variants] = scores.double().cpu().numpy().reshape(len(variants), -1).T
    return result

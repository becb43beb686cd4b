"""What removed edges change of the inputs of nodes, while a batch of prompts is run.

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
from jaxtyping import Bool, Float
from torch import Tensor

if TYPE_CHECKING:
    from headscope.analyses._interventions.edge_patching import EdgeRun
    from headscope.analyses._interventions.head_projections import Stream

Removed = Bool[Tensor, "variant target source"]


class RemovedEdges:
    """What removed edges change of what targets read, while a batch is run."""

    def __init__(self, run: EdgeRun, removed: Removed, start: int, stream: Stream) -> None:
        self.run, self.removed = run, removed
        self.before = run.graph.first(start)
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

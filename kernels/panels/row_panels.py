"""Row panels of an attention call: exact weights of up to 256 queries at a time, in reused memory.

Every pass over the weights on torch goes through here: the capture, its gradients, and products
with the weights.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from headscope.kernels.compiled.operands import Operands
from headscope.kernels.compiled.sweep import Sweep
from headscope.kernels.panels.logits import Buffers, Logits
from headscope.kernels.panels.panel import Panel
from headscope.kernels.panels.plan import PanelPlan, Part
from headscope.kernels.panels.scores import Scores
from headscope.kernels.panels.scratch import Scratch
from headscope.kernels.panels.softmax import Softmax
from headscope.kernels.panels.workers import run_in_threads
from headscope.kernels.ranges import length
from headscope.kernels.visibility import MASKED, Visibility


@dataclass(frozen=True, eq=False)
class Panels(PanelPlan):
    """The weights of one attention call, panel by panel."""

    def for_each_part(self, work: Callable[[Part, Iterator[Panel]], None]) -> None:
        """Call ``work`` with every part and its panels, parts side by side in several threads.

        Parts never share a head of a sequence; those of one group share a KV head. A panel is
        overwritten when the next one is requested.
        """

        def run(waiting: Iterator[Part]) -> None:
            with Scratch.lend() as scratch:
                options = (self.panel_elements, self.precision, self.q.device, scratch)
                memory = cache(lambda: Buffers.reserve(*options))
                for part in waiting:
                    work(part, self.fill(part, memory, scratch))

        run_in_threads(self.parts(), run, self.workers)

    def fill(self, part: Part, memory: Callable[[], Tensor], scratch: Scratch) -> Iterator[Panel]:
        """Compute logits and weights of each panel in turn, in the same memory."""
        visibility = self.visibility.batches(part.batch)
        targets = self._of_part(self.request.targets, part)
        spans = self._of_part(self.request.spans, part)
        scores = Scores(self.spec, visibility, part.batch, part.heads)
        sinks = None if scores.sinks is None else scores.sinks.to(self.precision).contiguous()
        logits = self._logits(part, scores)
        v = self.v[part.batch, part.kv].to(self.precision)
        if visibility.key_mask is not None:
            # 0 · NaN is NaN: what padding holds must not reach the product.
            v = v.masked_fill(~visibility.key_mask[:, None, :, None], 0.0)
        v = v.flatten(0, 1).contiguous()
        filler = self._filler(part, visibility, logits, v, sinks, scratch)
        for block in self.blocks:
            shape = (*logits.shape, length(block.queries), length(block.keys))
            buffers = Buffers(memory, shape)
            result = filler.fill(block, buffers)
            invalid_rows = None
            if not self.all_valid:
                unseen = result.max_logit <= MASKED / 2
                invalid_rows = ~visibility.valid_queries[:, None, block.queries] | unseen
            panel = Panel(
                result.compute_logits,
                result.max_logit,
                result.weights,
                buffers.none() if result.weights.is_meta else buffers.scratch,
                v[:, block.keys],
                block.queries,
                block.keys,
                None if targets is None else targets[:, :, block.queries],
                None if spans is None else spans[:, block.keys],
                invalid_rows,
                sinks,
                visibility,
                self.request,
                result.computed,
            )
            if self.sweep is None and invalid_rows is not None:
                result.weights.masked_fill_(invalid_rows[..., None], 0.0)
            yield panel

    def _of_part(self, indices: Tensor | None, part: Part) -> Tensor | None:
        """Return the sequences of a part of a tensor of the request."""
        return None if indices is None else indices[part.batch].to(self.q.device, torch.long)

    def _logits(self, part: Part, scores: Scores) -> Logits:
        """Return the logits of a part, to be computed panel by panel."""
        scale = self.spec.scale
        assert scale is not None
        q = torch.unflatten(self.q, 1, (-1, self.group))[part.batch, part.kv, part.group]
        k = self.k[part.batch, part.kv].to(self.precision).flatten(0, 1).mT
        # Torch multiplies faster with keys side by side; the sweep has an order of its own.
        return Logits(q, k.contiguous() if self.sweep is None else k, scale, scores)

    def _filler(
        self,
        part: Part,
        visibility: Visibility,
        logits: Logits,
        v: Tensor,
        sinks: Tensor | None,
        scratch: Scratch,
    ) -> Sweep | Softmax:
        """Choose what turns the logits of a part into weights."""
        if self.sweep is None:
            return Softmax(logits, scratch, self.spec.sigmoid, sinks, self.reductions)
        assert self.sweep.run is not None
        averaged = v if "attn_output" in self.reductions else None
        return Sweep(
            self.sweep.run,
            self.request,
            visibility,
            None if self.all_valid else visibility.valid_queries,
            sinks,
            self.reductions,
            Operands.of(logits, averaged, self.sweep.pack, scratch),
            scratch,
            None if self.output is None else self.output[part.batch, part.heads],
        )

"""Logits from scaled products: caps, biases, masks and edits of an attention spec."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.kernels.attention_spec import AttentionSpec
from headscope.kernels.visibility import MASKED, Block, Visibility


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of some sequences and consecutive heads, finished block by block, in place."""

    spec: AttentionSpec
    visibility: Visibility
    batch: slice
    heads: slice

    @property
    def plain(self) -> bool:
        """Whether the scaled products are the logits, up to hidden keys."""
        return plain(self.spec)

    def finish(self, logits: Float[Tensor, "batch head query key"], block: Block) -> None:
        """Convert scaled products into logits, hidden keys at -1e30."""
        self.compose(logits, block)
        self.visibility.mask_logits(logits, block)

    def compose(self, logits: Float[Tensor, "batch head query key"], block: Block) -> None:
        """Convert scaled products into logits; those out of order, window and padding stay."""
        if self.spec.softcap is not None:
            logits.div_(self.spec.softcap).tanh_().mul_(self.spec.softcap)
        if self.spec.slopes is not None:
            distance = self._distance(block).abs()
            logits.sub_(self._by_head(self.spec.slopes) * distance)
        edits = self.spec.edits
        temperature = None if edits is None else edits.temperature
        if temperature is not None:
            logits.div_(self._by_head(temperature))
        if self.spec.bias is not None:
            bias = narrow(self.spec.bias, self.batch, self.heads, block.queries, block.keys)
            if temperature is not None:
                bias = bias / self._by_head(temperature)
            logits.add_(finite(bias))
        if edits is not None:
            self._edit(logits, block)

    @property
    def sinks(self) -> Float[Tensor, "head 1"] | None:
        """Logits of the learned sinks, for every query."""
        sinks = self.spec.sinks
        if sinks is None:
            return None
        edits = self.spec.edits
        if edits is not None and edits.temperature is not None:
            sinks = sinks / edits.temperature
        return sinks[self.heads, None]

    def _edit(self, logits: Tensor, block: Block) -> None:
        edits = self.spec.edits
        assert edits is not None
        if edits.key_bias is not None:
            bias = narrow(edits.key_bias, self.batch, self.heads, block.keys)
            logits.add_(finite(bias)[:, :, None])
        if edits.spans is not None:
            table, query_spans, key_spans = edits.spans
            # A last row and column of zeros is the place of -1, no span.
            table = torch.nn.functional.pad(table, (0, 1, 0, 1))
            rows = query_spans[self.batch, block.queries].long()
            columns = key_spans[self.batch, block.keys].long()
            chosen = narrow(table, self.heads)[:, rows[:, :, None], columns[:, None]]
            logits.add_(finite(chosen.transpose(0, 1)))
        if edits.first is not None and edits.recent is not None:
            first, recent = self._by_head(edits.first), self._by_head(edits.recent)
            keys = self.visibility.first_keys(int(edits.first.max()))
            if keys.shape[1] > 1:
                keys = keys[:, block.queries]
            rank = self._rank(keys, block)
            kept = (self._distance(block).abs() < recent) | (rank < first) | (recent == 0)
            logits.masked_fill_(~kept, MASKED)
        if edits.pattern is not None:
            fixed = narrow(edits.pattern, self.batch, self.heads, block.queries, block.keys)
            logits.copy_(torch.where(fixed.isnan(), logits, finite(fixed.log())))

    def _rank(self, keys: Tensor, block: Block) -> Tensor:
        """Rank of each key of a block among the first real keys of the query's sequence."""
        batch, queries, count = keys.shape
        width = block.keys.stop - block.keys.start
        inside = (keys >= block.keys.start) & (keys < block.keys.stop)
        column = torch.where(inside, keys - block.keys.start, width)
        rank = torch.full((batch, queries, width + 1), count, device=keys.device)
        rank.scatter_(2, column, torch.arange(count, device=keys.device).expand_as(column))
        return rank[:, None, :, :width]

    def _distance(self, block: Block) -> Tensor:
        positions = self.visibility.positions[block.queries]
        return positions[:, None] - torch.arange(
            block.keys.start, block.keys.stop, device=positions.device
        )

    def _by_head(self, values: Tensor) -> Tensor:
        return values[self.heads, None, None]


def narrow(values: Tensor, *slices: slice) -> Tensor:
    """Slice the first dims; a dim of size 1 is broadcast."""
    chosen = [
        slice(None) if size == 1 else part
        for size, part in zip(values.shape[: len(slices)], slices, strict=True)
    ]
    return values[tuple(chosen)]


def finite(bias: Tensor) -> Tensor:
    """Replace -inf: -inf less -inf would be NaN."""
    return bias.clamp_min(MASKED)


def plain(spec: AttentionSpec) -> bool:
    """Whether the scaled products of a variant are its logits, up to hidden keys."""
    changes = (spec.softcap, spec.slopes, spec.bias)
    edited = spec.edits is not None and spec.edits.on_weights
    return not edited and all(change is None for change in changes)

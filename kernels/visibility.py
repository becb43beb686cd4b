"""Which keys a query attends to: causal, sliding-window and padding masks as bounds, not N×N."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.kernels.request import NO_KEY

MASKED = -1e30
"""Logit of a hidden key: finite, so that 0 · (m - s) stays 0 where -inf would give NaN."""


@dataclass(frozen=True, eq=False)
class Visibility:
    """The keys that each query may see, as bounds and prefix sums of linear size.

    The fields are those of ``AttentionSpec``; ``queries`` and ``keys`` count padding as well, and
    ``device`` is where the attention runs, None the CPU. Where no mask is given, the batch
    dimension of every property is 1.

    >>> Visibility(queries=3, keys=3, causal=True, window=2).key_counts
    tensor([[1, 2, 2]])
    """

    queries: int
    keys: int
    causal: bool
    window: int | None
    key_mask: Bool[Tensor, "batch key"] | None = None
    query_mask: Bool[Tensor, "batch query"] | None = None
    device: torch.device | None = None
    lengths: tuple[int, ...] | None = None

    @property
    def shift(self) -> int:
        """Position of the first query among the keys."""
        return self.keys - self.queries if self.causal else 0

    @cached_property
    def positions(self) -> Int[Tensor, " query"]:
        """Position of every query among the keys, in tokens."""
        return torch.arange(self.queries, device=self.device) + self.shift

    @cached_property
    def begin(self) -> Int[Tensor, " query"]:
        """First key of the sequence that every query belongs to."""
        return self._sequence(0)

    @cached_property
    def end(self) -> Int[Tensor, " query"]:
        """One past the last key of the sequence that every query belongs to."""
        return self._sequence(1)

    def _sequence(self, side: int) -> Int[Tensor, " query"]:
        sizes = torch.tensor(self.lengths or (self.keys,), device=self.device)
        edge = sizes.cumsum(0) - (0 if side else sizes)
        return edge.repeat_interleave(sizes) if self.lengths else edge.expand(self.queries)

    @cached_property
    def low(self) -> Int[Tensor, " query"]:
        """First key inside the window of every query."""
        reach = self.keys + self.queries if self.window is None else self.window - 1
        return torch.maximum((self.positions - reach).clamp(0, self.keys), self.begin)

    @cached_property
    def high(self) -> Int[Tensor, " query"]:
        """One past the last key inside the window of every query."""
        reach = self.keys + self.queries if self.window is None else self.window
        high = (self.positions + (1 if self.causal else reach)).clamp(0, self.keys)
        return torch.minimum(high, self.end)

    @cached_property
    def key_counts(self) -> Int[Tensor, "batch query"]:
        """Number of keys that every query sees; 0 for padding."""
        if self.key_mask is None:
            counts = (self.high - self.low).clamp_min(0)[None]
        else:
            before = _count_before(self.key_mask)
            counts = (before[:, self.high] - before[:, self.low]).clamp_min(0)
        return counts if self.query_mask is None else counts * self.query_mask

    @cached_property
    def query_counts(self) -> Int[Tensor, "batch key"]:
        """Number of queries that see every key; 0 for padding."""
        return self.query_counts_between(-self.keys - self.queries, self.keys + self.queries)

    def query_counts_between(self, nearest: int, farthest: int) -> Int[Tensor, "batch key"]:
        """Count the queries that see every key ``nearest`` to ``farthest`` positions after it."""
        key = torch.arange(self.keys, device=self.device)
        # low and high never decrease, so the queries that see a key are consecutive.
        start = torch.searchsorted(self.high, key, right=True)
        start = torch.maximum(start, key + nearest - self.shift)
        stop = torch.searchsorted(self.low, key, right=True)
        stop = torch.minimum(stop, key + farthest - self.shift + 1)
        start, stop = start.clamp(0, self.queries), stop.clamp(0, self.queries)
        if self.query_mask is None:
            counts = (stop - start).clamp_min(0)[None]
        else:
            before = _count_before(self.query_mask)
            counts = (before[:, stop] - before[:, start]).clamp_min(0)
        return counts if self.key_mask is None else counts * self.key_mask

    @cached_property
    def valid_queries(self) -> Bool[Tensor, "batch query"]:
        """Which queries are real and see at least one key."""
        return self.key_counts > 0

    def valid_queries_of_tiles(self, tile: int) -> Int[Tensor, "batch query_tile"]:
        """Count the queries of each tile that are real and see at least one key."""
        padded = torch.nn.functional.pad(self.valid_queries, (0, -self.queries % tile))
        return torch.unflatten(padded, -1, (-1, tile)).sum(dim=-1)

    def first_keys(self, count: int) -> Int[Tensor, "batch query rank"]:
        """Index of the first real keys of each query's sequence, -1 where it has fewer.

        Where all queries share one sequence, the query dimension is 1.
        """
        begin, end = self.begin[:, None], self.end[:, None]
        if self.lengths is None:
            begin, end = begin[:1], end[:1]
        rank = torch.arange(count, device=self.device)
        if self.key_mask is None:
            index = (begin + rank)[None]
        else:
            before = _count_before(self.key_mask)
            counts = (before[:, begin[:, 0], None] + rank + 1).flatten(1)
            index = torch.searchsorted(before[:, 1:].contiguous(), counts)
            index = torch.unflatten(index, 1, (-1, count))
        return torch.where(index < end, index, NO_KEY)

    def batches(self, part: slice) -> "Visibility":
        """Restrict the masks to some sequences of the batch."""
        return replace(
            self,
            key_mask=None if self.key_mask is None else self.key_mask[part],
            query_mask=None if self.query_mask is None else self.query_mask[part],
        )

    def block(self, queries: slice, tile: int) -> "Block":
        """Bound the keys that some queries see: from the start of a tile, and at least one key."""
        start = min(int(self.low[queries.start]), self.keys - 1) // tile * tile
        keys = slice(start, max(int(self.high[queries.stop - 1]), start + 1))
        return Block(queries, keys, self.low[queries], self.high[queries])

    def mask_logits(self, logits: Float[Tensor, "batch head query key"], block: "Block") -> None:
        """Overwrite, in place, the logits of the keys that a query may not see."""
        for columns, hidden in block.ends:
            logits[..., columns].masked_fill_(hidden, MASKED)
        if self.key_mask is not None:
            logits.masked_fill_(~self.key_mask[:, None, None, block.keys], MASKED)


@dataclass(frozen=True, eq=False)
class Block:
    """Some queries, the keys that any of them sees, and the bounds of each query's own window."""

    queries: slice
    keys: slice
    low: Int[Tensor, " query"]
    high: Int[Tensor, " query"]

    @cached_property
    def ends(self) -> tuple[tuple[slice, Bool[Tensor, "query _"]], ...]:
        """Columns of the block in which some keys are hidden, with the mask of the hidden ones."""
        key = torch.arange(self.keys.start, self.keys.stop, device=self.low.device)
        low, high = self.low[:, None], self.high[:, None]
        # Only the ragged ends are compared: between them every query sees every key.
        behind = max(int(low[-1]) - self.keys.start, 0)
        ahead = max(int(high[0]) - self.keys.start, 0)
        ends = []
        if behind > 0:
            ends.append((slice(0, behind), key[:behind] < low))
        if ahead < len(key):
            ends.append((slice(ahead, None), key[ahead:] >= high))
        return tuple(ends)


def _count_before(mask: Bool[Tensor, "batch length"]) -> Int[Tensor, "batch length+1"]:
    return torch.nn.functional.pad(mask.cumsum(dim=1), (1, 0))

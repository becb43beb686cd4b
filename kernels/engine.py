"""The row-panel engine: cuts an attention call into panels and hands them to the statistics."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from headscope.kernels.panel import Panel
from headscope.kernels.request import Request
from headscope.kernels.statistic import Statistic
from headscope.kernels.visibility import MASKED, Block, Visibility
from headscope.kernels.workers import share

ROWS = 128
PANEL_ELEMENTS = 1 << 20
"""Elements of a panel, 4 MB in float32: calls are few, so that workers seldom wait for Python."""
SHARES = 4
"""Parts come in fours of one size, so that two or four workers end together."""
LARGEST_PANEL = 1 << 22
"""Elements above which a panel of one head takes fewer queries, for very long texts."""
SHARP = 32.0
"""Largest logit of a row above which float32 sums are too coarse: the entropy would be off by more
than 1e-5. Such panels get their logits from float64, rounded once."""
NEGLIGIBLE = -75.0
"""Logit, less the row's largest, below which the weight of such a panel is 0: under 3e-33."""


@dataclass(frozen=True)
class Part:
    """Some sequences, some KV heads, and some of the query heads that share each KV head.

    Either all query heads of several KV heads or some query heads of one, so that the query heads
    are consecutive.
    """

    batch: slice
    kv: slice
    group: slice


@dataclass(frozen=True, eq=False)
class PanelEngine:
    """One attention call on torch, in panels.

    Parameters
    ----------
    q, k, v
        Checked tensors of shape (batch, head, token, size).
    request
        Parameters of the statistics.
    visibility
        Which keys each query may see.
    scale
        Factor of the scores.
    softcap
        Cap of the scores, None for none.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    request: Request
    visibility: Visibility
    scale: float
    softcap: float | None

    def run(self, chosen: list[Statistic]) -> dict[str, Tensor]:
        """Compute the chosen statistics, by name."""
        results = {statistic.name: self.allocate(statistic) for statistic in chosen}
        parts = list(self.parts())
        room = max(map(self.heads, parts)) * self.largest

        def work(waiting: Iterator[Part]) -> None:
            memory = torch.empty(3, room, device=self.q.device)
            for part in waiting:
                self.capture(part, chosen, results, memory)

        # Parts write to disjoint places, so they may run in any order or side by side.
        share(parts, work, torch.get_num_threads() if self.q.device.type == "cpu" else 1)
        for statistic in chosen:
            if statistic.finish is not None:
                total = results[statistic.name]
                results[statistic.name] = statistic.finish(total, self.visibility, self.request)
        return results

    @property
    def group(self) -> int:
        """Number of query heads that share a KV head."""
        return self.q.shape[1] // self.k.shape[1]

    @property
    def rows(self) -> int:
        """Largest number of queries in a panel."""
        affordable = max(LARGEST_PANEL // self.visibility.keys // 32 * 32, 32)
        return min(affordable, ROWS, self.visibility.queries)

    @cached_property
    def blocks(self) -> list[Block]:
        """Queries and keys of every panel; the queries are whole tiles or lie in one tile."""
        tile, rows = self.request.tile, self.rows
        step = rows // tile * tile if tile <= rows else tile
        return [
            self.visibility.block(queries, tile)
            for whole in cut(0, self.visibility.queries, step)
            for queries in cut(whole.start, whole.stop, rows)
        ]

    @cached_property
    def largest(self) -> int:
        """Elements of the largest panel of one head."""
        return max(size(block.queries) * size(block.keys) for block in self.blocks)

    @cached_property
    def all_alive(self) -> bool:
        """Whether every query is real and sees a key, so that no row needs to be blanked."""
        return bool(self.visibility.alive.all())

    def parts(self) -> Iterator[Part]:
        """Cut batch and heads so that a panel of one part stays small."""
        batch, kv_heads = self.k.shape[:2]
        heads = max(PANEL_ELEMENTS // self.largest, 1)
        total = batch * self.q.shape[1]
        if total > heads:
            # Whatever the number of threads, so that it never shows in the numbers.
            turns = -(-total // (heads * SHARES))
            heads = -(-total // (turns * SHARES))
        for sequences in cut(0, batch, max(heads // self.q.shape[1], 1)):
            for kv in cut(0, kv_heads, max(heads // self.group, 1)):
                for group in cut(0, self.group, heads):
                    yield Part(sequences, kv, group)

    def heads(self, part: Part) -> int:
        """Number of heads in a panel of a part, all its sequences together."""
        return size(part.batch) * size(part.kv) * size(part.group)

    def allocate(self, statistic: Statistic) -> Tensor:
        """Make room for a statistic: NaN where each place is written once, else 0."""
        queries, keys, tile = self.visibility.queries, self.visibility.keys, self.request.tile
        sizes = {
            "query": queries,
            "key": keys,
            "query_tile": -(-queries // tile),
            "key_tile": -(-keys // tile),
            "size": self.v.shape[3],
        }
        for dim, labels in statistic.labels.items():
            sizes[dim] = len(labels(self.request, max(queries, keys)))
        shape = (*self.q.shape[:2], *(sizes[dim] for dim in statistic.dims))
        # Keys outside a panel have no weight, and a panel does not write there.
        start = 0.0 if {"key", "key_tile"} & set(statistic.dims) else float("nan")
        return torch.full(shape, start, device=self.q.device)

    def capture(
        self, part: Part, chosen: list[Statistic], results: dict[str, Tensor], memory: Tensor
    ) -> None:
        """Run the panels of one part and put their results in place."""
        first = part.kv.start * self.group + part.group.start
        heads = slice(first, (part.kv.stop - 1) * self.group + part.group.stop)
        places = {name: result[part.batch, heads] for name, result in results.items()}
        for panel in self.fill(part, memory):
            dead = None if self.all_alive else ~panel.visibility.alive[:, panel.queries]
            if dead is not None:
                panel.weights.masked_fill_(dead[:, None, :, None], 0.0)
            for statistic in chosen:
                place = places[statistic.name]
                put(statistic, panel, place)
                if dead is not None and statistic.by_query:
                    rows = place[:, :, panel.queries]
                    rows.masked_fill_(
                        dead.view(len(dead), 1, -1, *[1] * (rows.ndim - 3)), statistic.empty
                    )

    def fill(self, part: Part, memory: Tensor) -> Iterator[Panel]:
        """Compute logits and weights of each panel in turn, in the same memory."""
        visibility = self.visibility.batches(part.batch)
        targets = None
        if self.request.targets is not None:
            targets = self.request.targets[part.batch].to(self.q.device, torch.long)
        spans = None
        if self.request.spans is not None:
            spans = self.request.spans[part.batch].to(self.q.device, torch.long)
        q = torch.unflatten(self.q, 1, (-1, self.group))[part.batch, part.kv, part.group]
        k = self.k[part.batch, part.kv].float().flatten(0, 1).mT
        v = self.v[part.batch, part.kv].float()
        if visibility.key_mask is not None:
            # 0 · NaN is NaN: what padding holds must not reach the product.
            v = v.masked_fill(~visibility.key_mask[:, None, :, None], 0.0)
        v = v.flatten(0, 1)
        k64: Tensor | None = None
        batch, heads = q.shape[0], q.shape[1] * q.shape[2]
        for block in self.blocks:
            shape = (batch, heads, size(block.queries), size(block.keys))
            weights, scratch, logits = memory[:, : math.prod(shape)].view(3, *shape)
            # Query heads that share a KV head are rows of one product: K is never expanded.
            rows = q[..., block.queries, :].reshape(len(v), -1, q.shape[-1])
            product = logits.view(*rows.shape[:2], -1)
            torch.bmm(rows.float() * self.scale, k[..., block.keys], out=product)
            self.cap(product)
            visibility.hide(logits, block)
            peak = logits.amax(dim=-1)
            # A row without a visible key peaks at MASKED, which says nothing of its precision.
            if bool(((peak.abs() > SHARP) & (peak > MASKED / 2)).any()):
                k64 = k.double() if k64 is None else k64
                # The memory of weights and scratch, not in use yet, holds the float64 logits.
                exact = memory[:2].view(-1).view(torch.float64)[: logits.numel()].view_as(product)
                torch.bmm(rows.double() * self.scale, k64[..., block.keys], out=exact)
                product.copy_(self.cap(exact))
                visibility.hide(logits, block)
                peak = logits.amax(dim=-1)
                # Denormal weights would slow every later product down several times.
                torch.sub(logits, peak[..., None], out=scratch)
                torch.nn.functional.threshold(scratch, NEGLIGIBLE, MASKED, inplace=True)
                torch.softmax(scratch, dim=-1, out=weights)
            else:
                torch.softmax(logits, dim=-1, out=weights)
            yield Panel(
                logits,
                peak,
                weights,
                scratch,
                v[:, block.keys],
                block.queries,
                block.keys,
                None if targets is None else targets[:, :, block.queries],
                None if spans is None else spans[:, block.keys],
                visibility,
                self.request,
            )

    def cap(self, logits: Tensor) -> Tensor:
        """Apply the soft cap in place."""
        if self.softcap is None:
            return logits
        return logits.div_(self.softcap).tanh_().mul_(self.softcap)


def put(statistic: Statistic, panel: Panel, place: Tensor) -> None:
    """Write, add or keep the largest of what panels say, in their part of the result."""
    tile = panel.request.tile
    extents = {
        "query": panel.queries,
        "key": panel.keys,
        "query_tile": slice(panel.queries.start // tile, -(-panel.queries.stop // tile)),
        "key_tile": slice(panel.keys.start // tile, -(-panel.keys.stop // tile)),
    }
    where = tuple(extents.get(dim, slice(None)) for dim in statistic.dims)
    there = place[:, :, *where]
    if statistic.by_query:
        there.copy_(statistic.panel(panel))
    elif statistic.merge == "largest":
        torch.maximum(there, statistic.panel(panel), out=there)
    else:
        there.add_(statistic.panel(panel))


def cut(start: int, stop: int, step: int) -> Iterator[slice]:
    """Cut a range into consecutive pieces of at most ``step``."""
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def size(piece: slice) -> int:
    """Count the places of a slice."""
    return int(piece.stop) - int(piece.start)

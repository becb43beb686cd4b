"""Row panels of an attention call: exact weights of about 128 queries at a time, in reused memory.

Every pass over the weights on torch goes through here: the capture, its gradients, and products
with the weights.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool
from torch import Tensor

from headscope.kernels.panel import Panel
from headscope.kernels.request import Request
from headscope.kernels.scores import Scores
from headscope.kernels.variant import Variant
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

    Parameters
    ----------
    batch, kv
        Which sequences and KV heads.
    group
        Which query heads of each of these KV heads.
    shared
        Number of query heads that share a KV head.
    """

    batch: slice
    kv: slice
    group: slice
    shared: int

    @property
    def heads(self) -> slice:
        """Which query heads, counted over all KV heads."""
        first = self.kv.start * self.shared + self.group.start
        return slice(first, (self.kv.stop - 1) * self.shared + self.group.stop)


@dataclass(frozen=True, eq=False)
class Panels:
    """The weights of one attention call, panel by panel.

    Parameters
    ----------
    q, k, v
        Checked tensors of shape (batch, head, token, size).
    variant
        A variant that fits them.
    request
        Parameters of statistics; panels keep to its tiles.
    wanted
        Queries that matter: panels without any of them are left out. None is all.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    variant: Variant
    request: Request = field(default_factory=lambda: Request(stats=()))
    wanted: Bool[Tensor, " query"] | None = None

    def each(self, work: Callable[[Part, Iterator[Panel]], None]) -> None:
        """Hand all panels of every part to ``work``, parts side by side in several threads.

        Parameters
        ----------
        work
            Called once for each part. Parts never share a head of a sequence; those of one group
            share a KV head. A panel is gone when the next one is asked for.
        """
        parts = list(self.parts())
        room = max(
            size(part.batch) * size(part.heads) for part in parts
        ) * self.largest  # fmt: skip

        def run(waiting: Iterator[Part]) -> None:
            memory = torch.empty(3, room, dtype=self.precision, device=self.q.device)
            for part in waiting:
                work(part, self.fill(part, memory))

        share(parts, run, torch.get_num_threads() if self.q.device.type == "cpu" else 1)

    @property
    def precision(self) -> torch.dtype:
        """Type that everything is computed in: float32, or float64 for inputs of float64."""
        return torch.promote_types(self.q.dtype, torch.float32)

    @cached_property
    def visibility(self) -> Visibility:
        """Which keys each query may see."""
        return self.variant.visibility(self.q.shape[2], self.k.shape[2], self.q.device)

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
            if self.wanted is None or bool(self.wanted[queries].any())
        ]

    @cached_property
    def largest(self) -> int:
        """Elements of the largest panel of one head."""
        return max(size(block.queries) * size(block.keys) for block in self.blocks)

    @cached_property
    def all_alive(self) -> bool:
        """Whether every query is real and sees a key, so that no row needs to be blanked."""
        return not self.variant.hides and bool(self.visibility.alive.all())

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
                    yield Part(sequences, kv, group, self.group)

    def fill(self, part: Part, memory: Tensor) -> Iterator[Panel]:
        """Compute logits and weights of each panel in turn, in the same memory."""
        visibility = self.visibility.batches(part.batch)
        scores = Scores(self.variant, visibility, part.batch, part.heads)
        targets = None
        if self.request.targets is not None:
            targets = self.request.targets[part.batch].to(self.q.device, torch.long)
        spans = None
        if self.request.spans is not None:
            spans = self.request.spans[part.batch].to(self.q.device, torch.long)
        sinks = None if scores.sinks is None else scores.sinks.to(self.precision)
        scale = self.variant.scale
        assert scale is not None
        q = torch.unflatten(self.q, 1, (-1, self.group))[part.batch, part.kv, part.group]
        k = self.k[part.batch, part.kv].to(self.precision).flatten(0, 1).mT
        v = self.v[part.batch, part.kv].to(self.precision)
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
            torch.bmm(rows.to(self.precision) * scale, k[..., block.keys], out=product)
            scores.finish(logits, block)
            peak = logits.amax(dim=-1)
            # A row without a visible key peaks at MASKED, which says nothing of its precision.
            coarse = self.precision == torch.float32
            sharp = coarse and bool(((peak.abs() > SHARP) & (peak > MASKED / 2)).any())
            if sharp:
                k64 = k.double() if k64 is None else k64
                # The memory of weights and scratch, not in use yet, holds the float64 logits.
                exact = memory[:2].view(-1).view(torch.float64)[: logits.numel()].view(shape)
                product = exact.view(product.shape)
                torch.bmm(rows.double() * scale, k64[..., block.keys], out=product)
                scores.finish(exact, block)
                logits.copy_(exact)
                peak = logits.amax(dim=-1)
            if self.variant.sigmoid:
                torch.sigmoid(logits, out=weights)
            elif sharp:
                # Denormal weights would slow every later product down several times.
                torch.sub(logits, peak[..., None], out=scratch)
                torch.nn.functional.threshold(scratch, NEGLIGIBLE, MASKED, inplace=True)
                torch.softmax(scratch, dim=-1, out=weights)
            else:
                torch.softmax(logits, dim=-1, out=weights)
            dead = None
            if not self.all_alive:
                dead = ~visibility.alive[:, None, block.queries] | (peak <= MASKED / 2)
            panel = Panel(
                logits,
                peak,
                weights,
                scratch,
                v[:, block.keys],
                block.queries,
                block.keys,
                None if targets is None else targets[:, :, block.queries],
                None if spans is None else spans[:, block.keys],
                dead,
                sinks,
                visibility,
                self.request,
            )
            panel.drain()
            if dead is not None:
                weights.masked_fill_(dead[..., None], 0.0)
            yield panel


def cut(start: int, stop: int, step: int) -> Iterator[slice]:
    """Cut a range into consecutive pieces of at most ``step``."""
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def size(piece: slice) -> int:
    """Count the places of a slice."""
    return int(piece.stop) - int(piece.start)

"""Row panels of an attention call: exact weights of up to 256 queries at a time, in reused memory.

Every pass over the weights on torch goes through here: the capture, its gradients, and products
with the weights.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.kernels.attention_spec import AttentionSpec
from headscope.kernels.compiled import blas
from headscope.kernels.compiled.library import Engine, Library, choose
from headscope.kernels.compiled.operands import LEAST_ROWS, PARTS, Operands, packed
from headscope.kernels.compiled.sweep import Sweep, unfilled
from headscope.kernels.compiled.sweep_call import Call
from headscope.kernels.panels.logits import EXACT_ROWS, Buffers, Logits
from headscope.kernels.panels.panel import Panel
from headscope.kernels.panels.scores import Scores, plain
from headscope.kernels.panels.scratch import Scratch
from headscope.kernels.panels.softmax import LOOKS, Softmax
from headscope.kernels.panels.workers import share
from headscope.kernels.request import Request
from headscope.kernels.visibility import MASKED, Block, Visibility

ROWS = 256
"""Queries in a panel; half as many where its logits stay beside the weights."""
BARE_ROWS = 4096
"""The same where it keeps no weights: calls are few, so workers seldom wait for Python."""
PANEL_ELEMENTS = 1 << 20
"""Elements of all rows together, above which a call is cut into parts."""
ROOM = 4
"""How many times as large a panel may be: calls are few, so workers seldom wait for Python. Half as
many where logits stay beside the weights."""
SHARES = 4
"""Parts come in fours of one size, so that two or four workers end together."""
SWEPT_SHARES = 6
"""The same for the sweep, which stays as fast with smaller parts, and takes less memory."""
LARGEST_PANEL = 1 << 22
"""Elements above which a panel of one head takes fewer queries, for very long texts."""


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
    reductions
        Properties of a panel that are read. The sweep fills them in; only where ``weights`` is
        among them, or torch makes one of the others, does it keep the weights. Torch writes weights
        over the logits unless ``logits`` or the leaders are among them.
    engine
        ``compiled`` makes weights in one compiled sweep, ``panels`` on torch; ``auto`` takes the
        sweep where there is one for this call.
    output
        Where the averaged values may be written at once: float32, rows side by side.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    variant: AttentionSpec
    request: Request = field(default_factory=lambda: Request(stats=()))
    wanted: Bool[Tensor, " query"] | None = None
    reductions: frozenset[str] = frozenset({"weights"})
    engine: Engine = "auto"
    output: Float[Tensor, "batch head query value_size"] | None = None

    def each(self, work: Callable[[Part, Iterator[Panel]], None]) -> None:
        """Hand all panels of every part to ``work``, parts side by side in several threads.

        Parameters
        ----------
        work
            Called once for each part. Parts never share a head of a sequence; those of one group
            share a KV head. A panel is gone when the next one is asked for.

        Raises
        ------
        HeadscopeError
            When the sweep is demanded and cannot be had.
        """

        def run(waiting: Iterator[Part]) -> None:
            with Scratch.lend() as scratch:
                whole = (self.room, self.precision, self.q.device, scratch)
                memory = cache(lambda: Buffers.reserve(*whole))
                for part in waiting:
                    work(part, self.fill(part, memory, scratch))

        share(self.parts(), run, self.workers)

    @cached_property
    def room(self) -> int:
        """Elements of the largest panel of the largest part."""
        return max(size(part.batch) * size(part.heads) for part in self.parts()) * self.largest

    @cached_property
    def taken(self) -> int:
        """Bytes that a worker takes: panels, or keys, values, rows and results of the sweep."""
        panel = self.room * self.precision.itemsize
        part = max(self.parts(), key=lambda one: size(one.batch) * size(one.heads))
        heads, shared = size(part.batch) * size(part.heads), size(part.batch) * size(part.kv)
        keys = max(size(block.keys) for block in self.blocks)
        exact = 12 * heads * min(EXACT_ROWS, self.rows) * keys
        if self.sweep is None:
            # One for statistics that need room, and the keys once more.
            return (3 if self.apart else 2) * panel + 4 * shared * keys * self.q.shape[3] + exact
        sizes = (self.q.shape[3], self.v.shape[3])
        parts = PARTS[self.q.dtype]
        operands = sum(4 * keys * each for each in sizes)
        call = Call(rows=self.rows, keys=keys, gemm=1, size=sizes[0], value_size=sizes[1])
        if self.sweep.pack is not None and self.rows >= LEAST_ROWS:
            operands = sum(2 * packed(keys, each, parts) for each in sizes)
            call.key_bricks = call.value_bricks = 1
            call.key_parts = call.value_parts = parts
        results = 4 * heads * self.rows * (sizes[1] + 4 * self.request.k)
        kept = 0 if self.bare else panel
        return shared * operands + self.sweep.room(call) + results + kept + exact

    @property
    def workers(self) -> int:
        """Largest number of threads that take parts."""
        return torch.get_num_threads() if self.q.device.type == "cpu" else 1

    @property
    def precision(self) -> torch.dtype:
        """Type that everything is computed in: float32, or float64 for inputs of float64."""
        return torch.promote_types(self.q.dtype, torch.float32)

    @cached_property
    def visibility(self) -> Visibility:
        """Which keys each query may see."""
        return self.variant.visibility(self.q.shape[2], self.k.shape[2], self.q.device)

    @cached_property
    def sweep(self) -> Library | None:
        """The library with the compiled sweep, None where torch makes the weights."""
        return choose(self.engine, self.variant, self.precision, self.q.device)

    @property
    def group(self) -> int:
        """Number of query heads that share a KV head."""
        return self.q.shape[1] // self.k.shape[1]

    @cached_property
    def bare(self) -> bool:
        """Whether no panel is kept: the sweep makes the logits and all that is read."""
        if self.sweep is None or not plain(self.variant):
            return False
        multiplies = self.sweep.pack is not None or blas.gemm() is not None
        return multiplies and not self.reductions & unfilled(self.request, self.visibility)

    @property
    def rows(self) -> int:
        """Largest number of queries in a panel."""
        if self.bare:
            return min(BARE_ROWS, self.visibility.queries)
        affordable = max(LARGEST_PANEL // self.visibility.keys // 32 * 32, 32)
        rows = max(ROWS // 2, 1) if self.apart else ROWS
        return min(affordable, rows, self.visibility.queries)

    @property
    def apart(self) -> bool:
        """Whether panels keep their logits beside their weights."""
        return self.sweep is None and bool(self.reductions & LOOKS)

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
            room = ROOM // 2 if self.apart else ROOM
            shares = SHARES if self.sweep is None else SWEPT_SHARES
            heads = max(room * PANEL_ELEMENTS // self.largest, 1)
            # Whatever the number of threads, so that it never shows in the numbers.
            turns = -(-total // (heads * shares))
            heads = -(-total // (turns * shares))
        for sequences in cut(0, batch, max(heads // self.q.shape[1], 1)):
            for kv in cut(0, kv_heads, max(heads // self.group, 1)):
                for group in cut(0, self.group, heads):
                    yield Part(sequences, kv, group, self.group)

    def fill(self, part: Part, memory: Callable[[], Tensor], scratch: Scratch) -> Iterator[Panel]:
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
        k = self.k[part.batch, part.kv].to(self.precision).flatten(0, 1).mT
        logits = Logits(
            torch.unflatten(self.q, 1, (-1, self.group))[part.batch, part.kv, part.group],
            # Torch multiplies faster with keys side by side; the sweep has an order of its own.
            k.contiguous() if self.sweep is None else k,
            scale,
            scores,
        )
        v = self.v[part.batch, part.kv].to(self.precision)
        if visibility.key_mask is not None:
            # 0 · NaN is NaN: what padding holds must not reach the product.
            v = v.masked_fill(~visibility.key_mask[:, None, :, None], 0.0)
        v = v.flatten(0, 1).contiguous()
        filler: Sweep | Softmax
        if self.sweep is None:
            filler = Softmax(logits, scratch, self.variant.sigmoid, sinks, self.reductions)
        else:
            assert self.sweep.run is not None
            alive = None if self.all_alive else visibility.alive
            mixed = v if "mixed" in self.reductions else None
            filler = Sweep(
                self.sweep.run,
                self.request,
                visibility,
                alive,
                sinks,
                self.reductions,
                Operands.of(logits, mixed, self.sweep.pack, scratch),
                scratch,
                None if self.output is None else self.output[part.batch, part.heads],
            )
        for block in self.blocks:
            shape = (*logits.shape, size(block.queries), size(block.keys))
            buffers = Buffers(memory, shape)
            made = filler.fill(block, buffers)
            dead = None
            if not self.all_alive:
                dead = ~visibility.alive[:, None, block.queries] | (made.peak <= MASKED / 2)
            panel = Panel(
                made.score,
                made.peak,
                made.weights,
                buffers.none() if made.weights.is_meta else buffers.scratch,
                v[:, block.keys],
                block.queries,
                block.keys,
                None if targets is None else targets[:, :, block.queries],
                None if spans is None else spans[:, block.keys],
                dead,
                sinks,
                visibility,
                self.request,
                made.known,
            )
            if self.sweep is None and dead is not None:
                made.weights.masked_fill_(dead[..., None], 0.0)
            yield panel


def cut(start: int, stop: int, step: int) -> Iterator[slice]:
    """Cut a range into consecutive pieces of at most ``step``."""
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def size(piece: slice) -> int:
    """Count the places of a slice."""
    return int(piece.stop) - int(piece.start)

"""How an attention call is cut into parts and row panels, and what memory these take."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.kernels import statistics
from headscope.kernels.attention_spec import PLAIN, AttentionSpec
from headscope.kernels.compiled import blas
from headscope.kernels.compiled.library import Engine, Library, choose
from headscope.kernels.compiled.operands import LEAST_ROWS, PARTS, packed_size
from headscope.kernels.compiled.sweep import left_to_torch
from headscope.kernels.compiled.sweep_call import Call
from headscope.kernels.panels.logits import EXACT_ROWS
from headscope.kernels.panels.scores import plain
from headscope.kernels.panels.softmax import NEED_LOGITS
from headscope.kernels.ranges import length, split_range
from headscope.kernels.request import Request
from headscope.kernels.visibility import Block, Visibility

ROWS = 256
"""Queries in a panel; half as many where its logits stay beside the weights."""
BARE_ROWS = 4096
"""The same where it keeps no weights: calls are few, so workers seldom wait for Python."""
PANEL_ELEMENTS = 1 << 20
"""Elements of all rows together, above which a call is cut into parts."""
ROOM = 4
"""How many times as large a panel may be: calls are few, so workers seldom wait for Python. Half as
many where logits stay beside the weights."""
SHARES = 8
"""Parts come in eights of one size, so that two or four workers end together."""
SWEPT_SHARES = 6
"""The same for the sweep, measured to be as fast as larger parts."""
LARGEST_PANEL = 1 << 22
"""Elements above which a panel of one head takes fewer queries, for very long texts."""


@dataclass(frozen=True)
class Part:
    """Some sequences, some KV heads, and some of the query heads that share each KV head.

    Either all query heads of several KV heads or some query heads of one, so that the query heads
    are consecutive. ``group`` counts within a KV head, which ``shared`` query heads share.
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

    @property
    def size(self) -> int:
        """Number of query heads, those of every sequence."""
        return length(self.batch) * length(self.heads)


@dataclass(frozen=True, eq=False)
class PanelPlan:
    """The plan of one attention call: its parts, its panels and their memory.

    ``q``, ``k`` and ``v`` (batch, head, token, size) have been checked, and ``spec`` fits them.
    Panels keep to the tiles of ``request``, and those without a query of ``query_mask`` (None
    is all) are left out.

    ``reductions`` are the properties of a panel that are read. The sweep fills them in; only where
    ``weights`` is among them, or torch makes one of the others, does it keep the weights. Torch
    writes weights over the logits unless ``logits`` or the leaders are among them.

    The ``engine`` ``compiled`` makes weights in one compiled sweep, ``panels`` on torch; ``auto``
    takes the sweep where there is one for this call. The averaged values may be written into
    ``output`` at once: float32, rows side by side.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    spec: AttentionSpec
    request: Request = field(default_factory=lambda: Request(stats=()))
    query_mask: Bool[Tensor, " query"] | None = None
    reductions: frozenset[str] = frozenset({"weights"})
    engine: Engine = "auto"
    output: Float[Tensor, "batch head query value_size"] | None = None

    @cached_property
    def visibility(self) -> Visibility:
        """Which keys each query may see."""
        return self.spec.visibility(self.q.shape[2], self.k.shape[2], self.q.device)

    @cached_property
    def sweep(self) -> Library | None:
        """The library with the compiled sweep, None where torch makes the weights."""
        return choose(self.engine, self.spec, self.precision, self.q.device)

    @property
    def precision(self) -> torch.dtype:
        """Type that everything is computed in: float32, or float64 for inputs of float64."""
        return torch.promote_types(self.q.dtype, torch.float32)

    @property
    def group(self) -> int:
        """Number of query heads that share a KV head."""
        return self.q.shape[1] // self.k.shape[1]

    @cached_property
    def keeps_no_weights(self) -> bool:
        """Whether no panel is kept: the sweep makes the logits and all that is read."""
        if self.sweep is None or not plain(self.spec):
            return False
        multiplies = self.sweep.pack is not None or blas.gemm() is not None
        return multiplies and not self.reductions & left_to_torch(self.request, self.visibility)

    @property
    def keeps_logits(self) -> bool:
        """Whether panels keep their logits beside their weights."""
        return self.sweep is None and bool(self.reductions & NEED_LOGITS)

    @property
    def rows(self) -> int:
        """Largest number of queries in a panel."""
        if self.keeps_no_weights:
            return min(BARE_ROWS, self.visibility.queries)
        affordable = max(LARGEST_PANEL // self.visibility.keys // 32 * 32, 32)
        rows = max(ROWS // 2, 1) if self.keeps_logits else ROWS
        return min(affordable, rows, self.visibility.queries)

    @cached_property
    def blocks(self) -> list[Block]:
        """Queries and keys of every panel; the queries are whole tiles or lie in one tile."""
        tile, rows = self.request.tile, self.rows
        step = rows // tile * tile if tile <= rows else tile
        return [
            self.visibility.block(queries, tile)
            for whole in split_range(0, self.visibility.queries, step)
            for queries in split_range(whole.start, whole.stop, rows)
            if self.query_mask is None or bool(self.query_mask[queries].any())
        ]

    @cached_property
    def largest(self) -> int:
        """Elements of the largest panel of one head."""
        return max(length(block.queries) * length(block.keys) for block in self.blocks)

    @cached_property
    def all_valid(self) -> bool:
        """Whether every query is real and sees a key, so that no row needs to be blanked."""
        return not self.spec.hides and bool(self.visibility.valid_queries.all())

    def parts(self) -> Iterator[Part]:
        """Split batch and heads so that a panel of one part stays small."""
        batch, kv_heads = self.k.shape[:2]
        heads = max(PANEL_ELEMENTS // self.largest, 1)
        total = batch * self.q.shape[1]
        if total > heads:
            room = ROOM // 2 if self.keeps_logits else ROOM
            shares = SHARES if self.sweep is None else SWEPT_SHARES
            heads = max(room * PANEL_ELEMENTS // self.largest, 1)
            # Whatever the number of threads, so that it never shows in the numbers.
            turns = -(-total // (heads * shares))
            heads = -(-total // (turns * shares))
        for sequences in split_range(0, batch, max(heads // self.q.shape[1], 1)):
            for kv in split_range(0, kv_heads, max(heads // self.group, 1)):
                for group in split_range(0, self.group, heads):
                    yield Part(sequences, kv, group, self.group)

    @cached_property
    def panel_elements(self) -> int:
        """Elements of the largest panel of the largest part."""
        return max(part.size for part in self.parts()) * self.largest

    @cached_property
    def worker_bytes(self) -> int:
        """Bytes that a worker takes: panels, or keys, values, rows and results of the sweep."""
        panel = self.panel_elements * self.precision.itemsize
        part = max(self.parts(), key=lambda part: part.size)
        heads, shared = part.size, length(part.batch) * length(part.kv)
        keys = max(length(block.keys) for block in self.blocks)
        exact = 12 * heads * min(EXACT_ROWS, self.rows) * keys
        if self.sweep is None:
            # One for statistics that need room, and the keys once more.
            panels = 3 if self.keeps_logits else 2
            return panels * panel + 4 * shared * keys * self.q.shape[3] + exact
        sizes = (self.q.shape[3], self.v.shape[3])
        parts = PARTS[self.q.dtype]
        operands = sum(4 * keys * width for width in sizes)
        call = Call(rows=self.rows, keys=keys, gemm=1, size=sizes[0], value_size=sizes[1])
        if self.sweep.pack is not None and self.rows >= LEAST_ROWS:
            operands = sum(2 * packed_size(keys, width, parts) for width in sizes)
            call.key_amx = call.value_amx = 1
            call.key_parts = call.value_parts = parts
        results = 4 * heads * self.rows * (sizes[1] + 4 * self.request.k)
        kept = 0 if self.keeps_no_weights else panel
        return shared * operands + self.sweep.memory_bytes(call) + results + kept + exact

    @property
    def workers(self) -> int:
        """Largest number of threads that take parts."""
        return torch.get_num_threads() if self.q.device.type == "cpu" else 1


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of an attention call besides its inputs and results.

    Each of the ``workers`` threads that compute side by side takes ``worker_bytes`` for panels,
    keys and values. Its largest panel has ``panel_elements``: statistics that no compiled reduction
    fills in make tensors of this size.
    """

    workers: int
    worker_bytes: int
    panel_elements: int


def estimate_memory(
    q: Float[Tensor, "batch head query size"],
    k: Float[Tensor, "batch kv_head key size"],
    v: Float[Tensor, "batch kv_head key value_size"],
    stats: Iterable[str],
    request: Request,
    spec: AttentionSpec = PLAIN,
) -> MemoryEstimate:
    """Estimate the memory of ``attend`` without running it.

    Only shapes, type and device of the tensors count: some that are expanded from a single number
    will do. A ``pattern`` among ``stats`` is no more than its panel, and is left out; ``request``
    holds their parameters.
    """
    names = {"z", *stats} - {"pattern"}
    reads = frozenset[str]().union(*(statistics.load(name).reads for name in names))
    plan = PanelPlan(q, k, v, spec.fit(q, k), request, reductions=reads)
    workers = min(plan.workers, sum(1 for _ in plan.parts()))
    return MemoryEstimate(workers, plan.worker_bytes, plan.panel_elements)

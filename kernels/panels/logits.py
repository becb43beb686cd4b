"""The logits of some sequences and heads, and memory for panels of them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.kernels.panels.scores import Scores
from headscope.kernels.panels.scratch import Scratch
from headscope.kernels.visibility import Block

SHARP = 32.0
"""Largest logit of a row above which float32 sums are too coarse: the entropy would be off by more
than 1e-5. Such panels get their logits from float64, rounded once."""
EXACT_ROWS = 128
"""Rows whose logits are made in float64 at once."""
LINE = 16
"""Elements in a line of the cache."""


@dataclass(frozen=True, eq=False)
class PanelResult:
    """The weights of a panel, and what is known of it besides."""

    weights: Float[Tensor, "batch head query key"]
    max_logit: Float[Tensor, "batch head query"]
    compute_logits: Callable[[], Float[Tensor, "batch head query key"]]
    computed: Mapping[str, Tensor] = field(default_factory=dict)


class Buffers:
    """Memory for one panel, from a larger piece that serves all panels in turn."""

    def __init__(self, memory: Callable[[], Tensor], shape: tuple[int, int, int, int]) -> None:
        self.memory = memory
        self.shape = shape
        self.count = math.prod(shape)
        self.step = -(-self.count // LINE) * LINE

    @cached_property
    def panel(self) -> Float[Tensor, "batch head query key"]:
        """The first of three tensors of this shape, each aligned to a line of the cache."""
        return self._at(0)

    @cached_property
    def scratch(self) -> Float[Tensor, "batch head query key"]:
        """The second."""
        return self._at(1)

    @cached_property
    def spare(self) -> Float[Tensor, "batch head query key"]:
        """The third."""
        return self._at(2)

    def _at(self, offset: int) -> Tensor:
        return self.memory().narrow(0, offset * self.step, self.count).view(self.shape)

    def none(self) -> Float[Tensor, "batch head query key"]:
        """Make a tensor of this shape without data: reading it fails."""
        return torch.empty((), device="meta").expand(self.shape)

    @staticmethod
    def reserve(count: int, dtype: torch.dtype, device: torch.device, scratch: Scratch) -> Tensor:
        """Reserve memory for panels of up to this many elements."""
        room = 3 * -(-count // LINE) * LINE
        if device.type == "cpu":
            return scratch.take("panels", room * dtype.itemsize).view(dtype)
        return torch.empty(room, dtype=dtype, device=device)


@dataclass(frozen=True, eq=False)
class Logits:
    """Source of the logits of a part of an attention call.

    Queries that share a KV head lie together; keys are in the precision of the panels. The products
    times ``scale`` become logits by ``scores``.
    """

    q: Float[Tensor, "batch kv_head group query size"]
    k: Float[Tensor, "batch_kv_head size key"]
    scale: float
    scores: Scores

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of sequences and of query heads."""
        return self.q.shape[0], self.q.shape[1] * self.q.shape[2]

    @cached_property
    def k64(self) -> Float[Tensor, "batch_kv_head size key"]:
        """Keys in float64, made once for all panels that need them."""
        return self.k.double()

    def rows(self, block: Block) -> Float[Tensor, "batch_kv_head row size"]:
        """Queries of a block; those that share a KV head are rows of one product."""
        rows = self.q[..., block.queries, :].to(self.k.dtype)
        return rows.reshape(len(self.k), -1, self.q.shape[-1])

    def put(
        self, block: Block, out: Float[Tensor, "batch head query key"], *, hide: bool = True
    ) -> Float[Tensor, "batch head query key"]:
        """Write the logits of a block into ``out``, in its precision, and return it.

        Without ``hide`` those of keys hidden by order, window or padding are arbitrary.
        """
        rows, k = self.rows(block), self.k
        if out.dtype != k.dtype:
            rows, k = rows.to(out.dtype), self.k64
        product = out.view(len(self.k), -1, out.shape[-1])
        # A factor 0 leaves out what the memory held, NaN as well.
        torch.baddbmm(product, rows, k[..., block.keys], beta=0, alpha=self.scale, out=product)
        if hide:
            self.scores.finish(out, block)
        else:
            self.scores.compose(out, block)
        return out

    def exact(
        self,
        block: Block,
        rows: slice,
        scratch: Scratch,
        *,
        hide: bool = True,
        out: Float[Tensor, "batch head row key"] | None = None,
    ) -> Float[Tensor, "batch head row key"]:
        """Make the logits of some rows in float64, rounded once, in ``out`` or the scratch."""
        start = block.queries.start
        few = slice(start + rows.start, start + rows.stop)
        part = Block(few, block.keys, block.low[rows], block.high[rows])
        shape = (*self.shape, rows.stop - rows.start, block.keys.stop - block.keys.start)
        count = math.prod(shape)
        if self.k.device.type == "cpu":
            wide = scratch.take("exact", 8 * count).view(torch.float64).view(shape)
        else:
            wide = torch.empty(shape, dtype=torch.float64, device=self.k.device)
        self.put(part, wide, hide=hide)
        if out is None and self.k.device.type == "cpu":
            out = scratch.take("rounded", 4 * count).view(torch.float32).view(shape)
        return wide.float() if out is None else out.copy_(wide)

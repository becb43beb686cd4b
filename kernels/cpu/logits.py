"""The logits of some sequences and heads, and torch's way from them to weights."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.kernels.cpu.scores import Scores
from headscope.kernels.cpu.scratch import Scratch
from headscope.kernels.visibility import MASKED, Block

SHARP = 32.0
"""Largest logit of a row above which float32 sums are too coarse: the entropy would be off by more
than 1e-5. Such panels get their logits from float64, rounded once."""
LINE = 16
"""Elements in a line of the cache."""
NEGLIGIBLE = -75.0
"""Logit, less the row's largest, below which the weight of such a panel is 0: under 3e-33."""


@dataclass(frozen=True, eq=False)
class Filled:
    """The weights of a panel, and what is known of it besides.

    Parameters
    ----------
    weights
        Weights of the keys.
    peak
        Largest logit of each row.
    score
        Computes the logits.
    known
        Other properties of the panel, by name.
    """

    weights: Float[Tensor, "batch head query key"]
    peak: Float[Tensor, "batch head query"]
    score: Callable[[], Float[Tensor, "batch head query key"]]
    known: Mapping[str, Tensor] = field(default_factory=dict)


class Buffers:
    """Memory for one panel, from a larger piece that serves all panels in turn.

    Parameters
    ----------
    memory
        Gives the piece, from ``reserve``: not asked for it where nothing is kept of a panel.
    shape
        Shape of the panel.
    """

    def __init__(self, memory: Callable[[], Tensor], shape: tuple[int, int, int, int]) -> None:
        self.memory = memory
        self.shape = shape
        self.count = math.prod(shape)
        self.step = -(-self.count // LINE) * LINE

    @property
    def panel(self) -> Float[Tensor, "batch head query key"]:
        """The first of three tensors of this shape, each aligned to a line of the cache."""
        return self._at(0)

    @property
    def scratch(self) -> Float[Tensor, "batch head query key"]:
        """The second."""
        return self._at(1)

    @property
    def spare(self) -> Float[Tensor, "batch head query key"]:
        """The third."""
        return self._at(2)

    @property
    def exact(self) -> Float[Tensor, "batch head query key"]:
        """The memory of scratch and spare as one float64 tensor."""
        both = self.memory()[self.step : 3 * self.step]
        return both.view(torch.float64)[: self.count].view(self.shape)

    def _at(self, place: int) -> Tensor:
        return self.memory()[place * self.step :][: self.count].view(self.shape)

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
    """Where the logits of a part of an attention call come from.

    Parameters
    ----------
    q
        Queries; those that share a KV head lie together.
    k
        Keys, in the precision of the panels.
    scale
        Factor of the products.
    scores
        What becomes of the products.
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
        rows = self.q[..., block.queries, :].reshape(len(self.k), -1, self.q.shape[-1])
        return rows.to(self.k.dtype).contiguous()

    def put(
        self, block: Block, out: Float[Tensor, "batch head query key"], *, hide: bool = True
    ) -> Float[Tensor, "batch head query key"]:
        """Write the logits of a block into ``out``, in its precision, and return it.

        Parameters
        ----------
        block
            Which queries and keys.
        out
            Contiguous memory, float32 or float64.
        hide
            Whether to overwrite those of keys that are hidden by order, window or padding.
        """
        rows = self.rows(block)
        k = self.k64 if out.dtype == torch.float64 else self.k
        product = out.view(len(self.k), -1, out.shape[-1])
        # A factor 0 leaves out what the memory held, NaN as well.
        torch.baddbmm(
            product,
            rows.to(out.dtype),
            k[..., block.keys],
            beta=0,
            alpha=self.scale,
            out=product,
        )
        if hide:
            self.scores.finish(out, block)
        else:
            self.scores.compose(out, block)
        return out

    def softmax(self, block: Block, buffers: Buffers, sigmoid: bool) -> Filled:
        """Turn the logits of a block into weights with torch.

        Parameters
        ----------
        block
            Which queries and keys.
        buffers
            Memory for logits, intermediate results and weights.
        sigmoid
            Whether each weight is the sigmoid of its logit.
        """
        logits, scratch, weights = buffers.panel, buffers.scratch, buffers.spare
        self.put(block, logits)
        peak = logits.amax(dim=-1)
        # A row without a visible key peaks at MASKED, which says nothing of its precision.
        coarse = logits.dtype == torch.float32
        sharp = coarse and bool(((peak.abs() > SHARP) & (peak > MASKED / 2)).any())
        if sharp:
            # The memory of weights and scratch, not in use yet, holds the float64 logits.
            self.put(block, buffers.exact)
            logits.copy_(buffers.exact)
            peak = logits.amax(dim=-1)
        if sigmoid:
            torch.sigmoid(logits, out=weights)
        elif sharp:
            # Denormal weights would slow every later product down several times.
            torch.sub(logits, peak[..., None], out=scratch)
            torch.nn.functional.threshold(scratch, NEGLIGIBLE, MASKED, inplace=True)
            torch.softmax(scratch, dim=-1, out=weights)
        else:
            torch.softmax(logits, dim=-1, out=weights)
        return Filled(weights, peak, lambda: logits)

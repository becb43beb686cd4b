"""Shapes: the attention calls that are measured, and the statistics that are computed in them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headscope.kernels.api import Request

COLUMNS: dict[str, tuple[str, ...]] = {
    "rows": ("lse", "max_weight"),
    "entropy": ("entropy", "first_mass"),
    "columns": ("received", "pooled_mean"),
    "histogram": ("distance_hist",),
    "top8": ("topk", "topk_key"),
}
"""Statistics that each column of a table adds to those before it; ``z`` is in all."""

TILES = 64
TOKENS = 1 << 17
"""Tokens of a batch on a GPU, the same at every length."""
GPU_LENGTHS = tuple(1 << power for power in range(10, 18))
GPU_SIZES = (64, 128)
GPU_HEADS = ((32, 32), (32, 8))
EAGER_LENGTH = 8192
EAGER_MATRICES = 4
"""N×N matrices of bfloat16 that eager attention holds at once, its float32 softmax counting two."""


@dataclass(frozen=True)
class Shape:
    """One shape of causal attention.

    Parameters
    ----------
    length
        Tokens of a text.
    batch
        Texts.
    heads, kv_heads
        Query heads, and heads of keys and values.
    size
        Size of a head.
    """

    length: int
    batch: int
    heads: int
    kv_heads: int
    size: int

    def inputs(
        self, device: str = "cpu", dtype: torch.dtype = torch.float32, sigma: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw q, k and v (batch, head, token, size); logits have the standard deviation sigma."""
        draw = torch.Generator(device).manual_seed(self.length)

        def normal(heads: int) -> Tensor:
            shape = (self.batch, heads, self.length, self.size)
            return torch.randn(shape, generator=draw, device=device, dtype=dtype)

        return sigma * normal(self.heads), normal(self.kv_heads), normal(self.kv_heads)


def cpu_shape(length: int, heads: int) -> Shape:
    """Describe one text with heads of 64, as it is measured on a CPU."""
    return Shape(length, 1, heads, heads, 64)


def gpu_shapes(
    lengths: Sequence[int] = GPU_LENGTHS, sizes: Sequence[int] = GPU_SIZES, tokens: int = TOKENS
) -> Iterator[Shape]:
    """List the shapes of a GPU: every length at the same number of tokens in all.

    Examples
    --------
    >>> next(gpu_shapes(lengths=(4096,)))
    Shape(length=4096, batch=32, heads=32, kv_heads=32, size=64)
    """
    for size in sizes:
        for heads, kv_heads in GPU_HEADS:
            for length in lengths:
                yield Shape(length, max(tokens // length, 1), heads, kv_heads, size)


def eager_shape(shape: Shape, memory: int) -> Shape | None:
    """Shrink a batch until eager attention fits into bytes of memory; None where it cannot.

    Examples
    --------
    >>> eager_shape(Shape(8192, 16, 32, 32, 128), memory=140 * 10**9).batch
    4
    """
    if shape.length > EAGER_LENGTH:
        return None
    text = EAGER_MATRICES * 2 * shape.heads * shape.length**2
    batch = 1
    while 2 * batch <= shape.batch and 2 * batch * text <= 0.6 * memory:
        batch *= 2
    if batch * text > 0.6 * memory:
        return None
    return Shape(shape.length, batch, shape.heads, shape.kv_heads, shape.size)


def cumulative(column: str) -> tuple[str, ...]:
    """List the statistics of a column, with those of the columns before it.

    Examples
    --------
    >>> cumulative("entropy")
    ('lse', 'max_weight', 'entropy', 'first_mass')
    """
    until = list(COLUMNS).index(column) + 1
    return tuple(name for stats in list(COLUMNS.values())[:until] for name in stats)


def request(length: int, column: str = "top8") -> Request:
    """Ask for the statistics of a column, with 64 tiles from 1024 tokens on and the 8 top keys."""
    return Request(stats=cumulative(column), tile=max(length // TILES, 16), k=8)

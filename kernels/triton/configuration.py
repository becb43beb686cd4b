"""Tile sizes of the kernels by architecture, head size and type: a table, no search at run time."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Configuration:
    """Tile sizes and schedule of one kernel.

    A tile has so many ``queries`` and ``keys``, shared by ``warps`` of 32 threads; ``stages`` tiles
    are in flight from memory. With ``tma`` the hardware of sm_90 computes the addresses of tiles,
    where the layout allows it.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    tma: bool = False


INTERPRETED = Configuration(128, 128, warps=4, stages=1)
"""Triton's interpreter takes the same time for every tile, whatever its size."""
FEW = 64
"""Queries, at most, of a decoding step: most rows of a larger tile would be empty."""
FORWARD_TMA = {
    64: Configuration(128, 128, warps=8, stages=3, tma=True),
    128: Configuration(128, 128, warps=8, stages=2, tma=True),
    256: Configuration(128, 64, warps=8, stages=2, tma=True),
}
"""sm_90, bfloat16 and float16, by head size."""
FORWARD_HALF = {
    (80, 64): Configuration(128, 64, warps=8, stages=2),
    (80, 128): Configuration(128, 64, warps=8, stages=2),
    (80, 256): Configuration(64, 64, warps=8, stages=2),
    (90, 64): Configuration(128, 64, warps=8, stages=2),
    (90, 128): Configuration(128, 64, warps=8, stages=2),
    (90, 256): Configuration(64, 32, warps=8, stages=2),
}
"""Without TMA: any layout, keys that stay unread."""
FORWARD_SMALL = Configuration(64, 32, warps=8, stages=2)
"""Several terms besides q·k, and head size 256 where a program has 99 KB of shared memory."""
LITTLE_SHARED = (86, 89, 120, 121)
"""Architectures with 99 KB of shared memory for a program; others have 160 KB or more."""
FORWARD_FEW = Configuration(16, 64, warps=4, stages=2)
"""Head sizes up to 128, few queries."""
FORWARD_FLOAT32 = {
    (80, 64): Configuration(32, 32, warps=4, stages=2),
    (80, 128): Configuration(32, 32, warps=8, stages=2),
    (90, 64): Configuration(128, 32, warps=8, stages=1),
    (90, 128): Configuration(32, 32, warps=8, stages=2),
}
"""Three TF32 products for one of float32 need many registers: small tiles."""
FORWARD_FLOAT32_TMA = Configuration(64, 16, warps=4, stages=1, tma=True)
"""sm_90, head size 128."""

COLUMNS = Configuration(64, 128, warps=4, stages=3)
"""Passes over the weights, sizes up to 128 of bfloat16 and float16."""
ROWS = Configuration(128, 128, warps=8, stages=2)
ROWS_KEPT = Configuration(128, 64, warps=8, stages=2)
"""Bins, spans and squares take registers."""
LATER_WIDE = Configuration(64, 64, warps=4, stages=2)
"""Size 256."""
LATER_SMALL = Configuration(64, 32, warps=8, stages=2)
"""Several terms besides q·k."""
LATER_FLOAT32 = {
    (80, 64): Configuration(32, 32, warps=4, stages=2),
    (80, 128): Configuration(32, 64, warps=8, stages=2),
    (90, 64): Configuration(64, 64, warps=4, stages=2),
    (90, 128): Configuration(64, 64, warps=4, stages=2),
}
SPANS_FLOAT32 = Configuration(64, 16, warps=4, stages=1)
"""Spans, size 128 of float32 on sm_80."""
COLUMNS_SMALL = Configuration(32, 64, warps=8, stages=2)
COLUMNS_FLOAT32 = {
    (80, 64): Configuration(32, 32, warps=4, stages=2),
    (80, 128): Configuration(64, 32, warps=8, stages=1),
    (90, 64): Configuration(64, 64, warps=4, stages=2),
    (90, 128): Configuration(32, 64, warps=4, stages=2),
}
"""Keys lie along the rows of a tile."""


def architecture(device: torch.device) -> int:
    """Compute capability of a device as Triton counts it, 90 for 9.0; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def padded(size: int) -> int:
    """Round a head size up to what a tile can have: a power of two, at least 16."""
    return max(16, 1 << (size - 1).bit_length())


def forward(
    arch: int, size: int, dtype: torch.dtype, queries: int, *, tma: bool = True, heavy: bool = False
) -> Configuration:
    """Choose the tiles of the first pass.

    ``arch`` is the compute capability, 90 for 9.0, or 0 for Triton's interpreter; ``size`` the
    larger head size of keys and values, padded; ``tma`` whether the layout of k and v suits TMA;
    ``heavy`` whether terms of the logits need many registers.
    """
    if arch == 0:
        return INTERPRETED
    size = max(size, 64)
    family = 90 if 90 <= arch < 120 else 80
    if dtype == torch.float32 and (family, size, tma) == (90, 128, True):
        return FORWARD_FLOAT32_TMA
    if dtype == torch.float32:
        return FORWARD_FLOAT32[family, size]
    if heavy:
        return FORWARD_SMALL
    if queries <= FEW and size <= 128:
        return FORWARD_FEW
    if family == 90 and tma:
        return FORWARD_TMA[size]
    if size == 256 and arch in LITTLE_SHARED:
        return FORWARD_SMALL
    return FORWARD_HALF[family, size]


def later(
    arch: int, size: int, dtype: torch.dtype, usual: Configuration, *, heavy: bool = False
) -> Configuration:
    """Choose the tiles of a pass over the weights, whose tiles for usual heads are ``usual``."""
    if arch == 0:
        return INTERPRETED
    turned = usual == COLUMNS
    if dtype == torch.float32:
        table = COLUMNS_FLOAT32 if turned else LATER_FLOAT32
        return table[90 if 90 <= arch < 120 else 80, max(size, 64)]
    if heavy:
        return COLUMNS_SMALL if turned else LATER_SMALL
    return LATER_WIDE if size > 128 else usual

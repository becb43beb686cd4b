"""Tile sizes of the kernels by architecture, head size and type: a table, no search at run time."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Configuration:
    """How one kernel is cut into tiles and scheduled.

    Parameters
    ----------
    queries, keys
        Queries and keys of a tile.
    warps
        Warps of 32 threads that share a tile.
    stages
        Tiles in flight from memory.
    tma
        Whether the hardware of sm_90 computes the addresses of tiles, where the layout allows it.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    tma: bool = False


def architecture(device: torch.device) -> int:
    """Tell the compute capability of a device as Triton counts it, 90 for 9.0; 80 on a CPU.

    Examples
    --------
    >>> architecture(torch.device("cpu"))
    80
    """
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def padded(size: int) -> int:
    """Round a head size up to what a tile can have: a power of two, at least 16.

    Examples
    --------
    >>> padded(96)
    128
    """
    return max(16, 1 << (size - 1).bit_length())


def forward(arch: int, size: int, dtype: torch.dtype, queries: int) -> Configuration:
    """Choose the tiles of the first pass.

    Parameters
    ----------
    arch
        Compute capability, 90 for 9.0.
    size
        Larger head size of keys and values, padded.
    dtype
        Type of q, k and v.
    queries
        Number of queries.

    Examples
    --------
    >>> forward(90, 128, torch.bfloat16, 8192)
    Configuration(queries=128, keys=128, warps=8, stages=2)
    """
    return Configuration(128, 128, 8, 2)

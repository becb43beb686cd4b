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
    """

    queries: int
    keys: int
    warps: int
    stages: int


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

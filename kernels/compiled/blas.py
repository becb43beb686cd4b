"""The product of matrices that torch brings along, for compiled code to call."""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

LIBRARIES = ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll")
SHAPES = ((1, 1, 1), (3, 5, 2), (33, 17, 70))
"""Rows, columns and terms of the products that are compared."""


@cache
def gemm() -> int | None:
    """Find ``sgemm`` of the BLAS library inside torch, and compare it with torch's own product.

    Returns
    -------
    Its address; None where torch was built without one that can be called.

    Examples
    --------
    >>> gemm() is None or gemm() > 0
    True
    """
    for name in LIBRARIES:
        path = Path(torch.__file__).parent / "lib" / name
        if not path.exists():
            continue
        try:
            function = ctypes.CDLL(str(path)).sgemm_
        except (OSError, AttributeError):
            return None
        return ctypes.cast(function, ctypes.c_void_p).value if agrees(function) else None
    return None


def agrees(function: "ctypes._NamedFuncPointer") -> bool:
    """Compare some products with torch's."""
    draw = torch.Generator().manual_seed(0)
    for rows, columns, terms in SHAPES:
        left = torch.randn(rows, terms, generator=draw)
        right = torch.randn(terms, columns, generator=draw)
        found = torch.full((rows, columns), torch.nan)
        multiply(function, left, right, found)
        if not torch.allclose(found, left @ right, rtol=1e-5, atol=1e-5):
            return False
    return True


def multiply(
    function: "ctypes._NamedFuncPointer", left: Tensor, right: Tensor, out: Tensor
) -> None:
    """Multiply as the compiled sweep does: BLAS counts columns first, so the transposes."""
    rows, terms = left.shape
    # Eight bytes, lowest first, hold small numbers for a BLAS that reads four as well.
    m, n, k = (ctypes.byref(ctypes.c_int64(size)) for size in (right.shape[1], rows, terms))
    one, none = ctypes.byref(ctypes.c_float(1.0)), ctypes.byref(ctypes.c_float(0.0))
    places = [ctypes.c_void_p(each.data_ptr()) for each in (right, left, out)]
    function(b"N", b"N", m, n, k, one, places[0], m, places[1], k, none, places[2], m)

"""Address of the matrix product (sgemm) inside torch, for compiled code to call."""

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
    """Find ``sgemm`` of the BLAS library inside torch, and compare it with torch's own product."""
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
        product = torch.full((rows, columns), torch.nan)
        multiply(function, left, right, product)
        if not torch.allclose(product, left @ right, rtol=1e-5, atol=1e-5):
            return False
    return True


def multiply(
    function: "ctypes._NamedFuncPointer", left: Tensor, right: Tensor, out: Tensor
) -> None:
    """Multiply as the compiled sweep does: BLAS counts columns first, so the transposes."""
    rows, terms = left.shape
    # Eight bytes, lowest first, hold small numbers for a BLAS that reads four as well.
    m, n, k = (ctypes.byref(ctypes.c_int64(size)) for size in (right.shape[1], rows, terms))
    alpha, beta = ctypes.byref(ctypes.c_float(1.0)), ctypes.byref(ctypes.c_float(0.0))
    pointers = [ctypes.c_void_p(matrix.data_ptr()) for matrix in (right, left, out)]
    function(b"N", b"N", m, n, k, alpha, pointers[0], m, pointers[1], k, beta, pointers[2], m)

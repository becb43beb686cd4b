"""A call of the compiled sweep, as C sees it."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from headscope.kernels.cpu import blas
from headscope.kernels.cpu.logits import Logits
from headscope.kernels.visibility import Block

COUNTS = ("batch", "heads", "rows", "keys")


class Call(ctypes.Structure):
    """The arguments of one sweep, as ``sweep.c`` lists them."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in COUNTS),
        *((name, ctypes.c_void_p) for name in ("panel", "low", "high")),
        ("first", ctypes.c_int64),
        ("real", ctypes.c_void_p),
        ("real_stride", ctypes.c_int64),
        ("alive", ctypes.c_void_p),
        ("alive_stride", ctypes.c_int64),
        ("sinks", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("position", "tile", "bins")),
        ("ends", ctypes.c_void_p),
        ("k", ctypes.c_int64),
        ("limit", ctypes.c_float),
        ("clip", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("peak", "top", "surplus")),
        *((name, ctypes.c_void_p) for name in ("entropy", "mean_distance", "distance_variance")),
        *((name, ctypes.c_void_p) for name in ("distance_hist", "leaders")),
        *((name, ctypes.c_void_p) for name in ("sums", "peaks", "tile_sums", "tile_peaks")),
        *((name, ctypes.c_void_p) for name in ("gemm", "query", "key", "value")),
        *((name, ctypes.c_int64) for name in ("size", "value_size", "stride")),
        *((name, ctypes.c_int64) for name in ("key_room", "value_room", "group")),
        ("scale", ctypes.c_float),
        ("mixed", ctypes.c_void_p),
    )


Run = Callable[[Call], int]


@dataclass(frozen=True, eq=False)
class Products:
    """Fields of a ``Call`` for its products, and tensors to be held until it has returned."""

    places: dict[str, Any]
    held: list[Tensor]


def multiply(
    panel: Float[Tensor, "batch head query key"],
    block: Block,
    logits: Logits | None,
    values: Float[Tensor, "batch_kv_head token value_size"] | None,
) -> Products:
    """Say what is multiplied before and after the rows of a panel.

    Parameters
    ----------
    panel
        Where the logits are or come to be.
    block
        Queries and keys of the panel.
    logits
        What to make the logits from, None where they are there.
    values
        What to average by the weights, if anything; contiguous.
    """
    places: dict[str, Any] = {}
    held = []
    start, heads = block.keys.start * panel.element_size(), panel.shape[0] * panel.shape[1]
    if logits is not None:
        query = logits.rows(block)
        held.append(query)
        places = {
            "query": query.data_ptr(),
            "key": logits.k.data_ptr() + start,
            "size": query.shape[-1],
            "stride": logits.k.shape[-1],
            "key_room": logits.k.stride(0),
            "scale": logits.scale,
            "group": heads // len(logits.k),
        }
    if values is not None:
        size = values.shape[-1]
        places |= {
            "value": values.data_ptr() + start * size,
            "value_size": size,
            "value_room": values.stride(0),
            "group": heads // len(values),
        }
    return Products(places | {"gemm": blas.gemm()} if places else {}, held)


def at(mask: Tensor | None) -> tuple[int | None, int]:
    """Tell C where a mask (batch, place) is, and how far apart its rows are."""
    if mask is None:
        return None, 0
    return mask.data_ptr(), mask.stride(0) if len(mask) > 1 else 0

"""Argument struct of the compiled sweep, as declared in ``sweep.h``."""

import ctypes
from collections.abc import Callable

from torch import Tensor

from headscope.kernels.panels.scratch import Scratch

COUNTS = ("batch", "heads", "rows", "keys", "begin", "end")
ROWS = (
    "max_logit",
    "max_prob",
    "lse_minus_max",
    "entropy",
    "mean_distance",
    "distance_variance",
    "first_sum",
)
COLUMNS = ("key_sum", "key_max", "tile_sum", "tile_max")
QUERY = ("query_batch", "query_head", "query_row")
FACTORS = ("key", "value", "key_amx", "value_amx")
SIZES = ("key_parts", "value_parts", "size", "value_size", "stride")


class Call(ctypes.Structure):
    """The arguments of one sweep, as ``sweep.h`` lists them."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in COUNTS),
        *((name, ctypes.c_void_p) for name in ("logits", "weights", "low", "high")),
        ("first", ctypes.c_int64),
        ("real_keys", ctypes.c_void_p),
        ("real_keys_stride", ctypes.c_int64),
        ("valid_rows", ctypes.c_void_p),
        ("valid_rows_stride", ctypes.c_int64),
        ("sinks", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("first_position", "tile", "bins")),
        ("bin_ends", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("k", "first_count")),
        ("first_keys", ctypes.c_void_p),
        ("limit", ctypes.c_float),
        ("clip", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ROWS),
        *((name, ctypes.c_void_p) for name in ("distance_hist", "topk_index", "topk_weights")),
        *((name, ctypes.c_void_p) for name in COLUMNS),
        *((name, ctypes.c_void_p) for name in ("gemm", "query")),
        *((name, ctypes.c_int64) for name in QUERY),
        *((name, ctypes.c_void_p) for name in FACTORS),
        *((name, ctypes.c_int64) for name in SIZES),
        *((name, ctypes.c_int64) for name in ("key_head", "value_head", "group")),
        ("scale", ctypes.c_float),
        ("attn_output", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("attn_output_batch", "attn_output_head")),
        ("memory", ctypes.c_void_p),
    )


Run = Callable[[Call, Scratch], int]
"""Runs a call in some memory: 1 when a row is beyond the limit, else 0."""


def at(mask: Tensor | None) -> tuple[int | None, int]:
    """Address of a mask (batch, position) and the stride between its rows."""
    if mask is None:
        return None, 0
    return mask.data_ptr(), mask.stride(0) if len(mask) > 1 else 0

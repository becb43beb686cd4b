"""Input checks of an attention call, shared by every engine."""

import math

import torch
from torch import Tensor

from headscope.kernels.errors import InvalidInput, ResourceLimit
from headscope.kernels.request import Request

PATTERN_LIMIT = 2048
"""Longest text, in tokens, whose whole pattern is kept: the one N×N output."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_tensors(q: Tensor, k: Tensor, v: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Refuse q, k and v that do not fit together or have an unsupported type."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.ndim != 4:
            raise InvalidInput(
                f"{name}: shape {tuple(tensor.shape)}; give (batch, head, token, size), 4 dims"
            )
        if 0 in tensor.shape:
            raise InvalidInput(
                f"{name}: empty, shape {tuple(tensor.shape)}; give at least one token"
            )
        if tensor.dtype not in dtypes:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise InvalidInput(f"{name}: {tensor.dtype}; cast it to one of {allowed}")
        if tensor.dtype != q.dtype or tensor.device != q.device:
            raise InvalidInput(
                f"{name}: {tensor.dtype} on {tensor.device} but q is {q.dtype} on {q.device}; "
                "give all three the same type and device"
            )
    if not q.shape[0] == k.shape[0] == v.shape[0]:
        raise InvalidInput(
            f"q, k, v: batches of {q.shape[0]}, {k.shape[0]}, {v.shape[0]}; give the same batch"
        )
    if q.shape[3] != k.shape[3]:
        raise InvalidInput(
            f"k: head size {k.shape[3]} but q has {q.shape[3]}; give the same head size"
        )
    if k.shape[1:3] != v.shape[1:3]:
        raise InvalidInput(
            f"v: {v.shape[1]} heads, {v.shape[2]} keys but k has {k.shape[1]}, {k.shape[2]}; "
            "give the same heads and keys"
        )
    if q.shape[1] % k.shape[1]:
        raise InvalidInput(
            f"k: {k.shape[1]} KV heads do not divide {q.shape[1]} query heads; "
            "give a divisor of the query heads"
        )


def check_options(scale: float | None, window: int | None, softcap: float | None) -> None:
    """Refuse a window, soft cap or scale out of its range."""
    if scale is not None and not math.isfinite(scale):
        raise InvalidInput(f"scale: {scale}; give a finite number, or None for 1/√size")
    if window is not None and window < 1:
        raise InvalidInput(f"window: {window} keys; give 1 or more, or None for no window")
    if softcap is not None and not softcap > 0:
        raise InvalidInput(f"softcap: {softcap}; give a positive number, or None for no cap")


def check_mask(name: str, mask: Tensor | None, batch: int, length: int) -> Tensor | None:
    """Refuse a mask of another shape or type; drop one that hides nothing."""
    if mask is None:
        return None
    if mask.dtype != torch.bool or mask.shape != (batch, length):
        raise InvalidInput(
            f"{name}: {mask.dtype} {tuple(mask.shape)}; give bool ({batch}, {length}), True = real"
        )
    return None if bool(mask.all()) else mask


def check_request(request: Request, batch: int, queries: int, keys: int) -> None:
    """Refuse targets and spans that do not fit the texts, and the pattern of a long text."""
    if "pattern" in request.stats and max(queries, keys) > PATTERN_LIMIT:
        raise ResourceLimit(
            f"stats: pattern of {queries} × {keys} tokens; ask for it up to {PATTERN_LIMIT} "
            "tokens, or recompute single heads from q, k and lse"
        )
    spans, targets = request.spans, request.targets
    if "span_mass" in request.stats and spans is not None and spans.shape != (batch, keys):
        raise InvalidInput(f"spans: shape {tuple(spans.shape)}; give (batch {batch}, key {keys})")
    if "target_mass" in request.stats and targets is not None:
        if (targets.shape[0], targets.shape[2]) != (batch, queries):
            raise InvalidInput(
                f"targets: shape {tuple(targets.shape)}; give (batch {batch}, target, "
                f"query {queries}, occurrence)"
            )
        if targets.numel() and int(targets.max()) >= keys:
            raise InvalidInput(f"targets: key {int(targets.max())} but there are only {keys} keys")


def real_queries(
    q: Tensor, k: Tensor, causal: bool, key_mask: Tensor | None, query_mask: Tensor | None
) -> Tensor | None:
    """Decide which queries are real: unless given, in causal attention those whose own key is."""
    if query_mask is not None or key_mask is None:
        return query_mask
    shift = k.shape[2] - q.shape[2]
    if causal:
        return torch.nn.functional.pad(key_mask, (max(-shift, 0), 0))[:, max(shift, 0) :]
    if shift == 0:
        raise InvalidInput(
            "query_mask: needed with a key_mask without causal order; "
            "give query_mask=key_mask where queries and keys are the same tokens"
        )
    return None

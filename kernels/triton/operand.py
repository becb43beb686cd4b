"""Tensors as kernel arguments: pointers and strides."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

LOG2E = math.log2(math.e)
HIDDEN = -1e30


class Operand(NamedTuple):
    """A tensor of a kernel: its pointer (None if absent) and strides, 0 where it is broadcast."""

    pointer: Tensor | None
    batch: int | None = 0
    head: int | None = 0
    token: int | None = 0
    channel: int | None = 0

    def inner(self) -> "Operand":
        """Write strides of 1 as None: Triton 3.6 loses a 1 in a tuple inside a tuple."""
        return Operand(self.pointer, *(None if stride == 1 else stride for stride in self[1:]))


def by_head(values: Tensor | None, factor: float) -> Tensor | None:
    """Multiply numbers of heads by a factor."""
    return None if values is None else (values.float() * factor).contiguous()


def by_token(values: Tensor | None, batch: int, tokens: int, dtype: torch.dtype) -> Operand:
    """Describe (batch, token) to a kernel, with tokens next to each other."""
    if values is None:
        return Operand(None)
    values = values.to(dtype).contiguous().expand(batch, tokens)
    return Operand(values, batch=values.stride(0)).inner()


def table(values: Tensor | None, heads: int) -> Operand:
    """Describe the bias of span pairs to a kernel, in base 2."""
    if values is None:
        return Operand(None)
    pairs = values.float().mul(LOG2E).clamp_min(HIDDEN).contiguous()
    pairs = pairs.expand(heads, *pairs.shape[1:])
    return Operand(pairs, head=pairs.stride(0), token=pairs.stride(1)).inner()

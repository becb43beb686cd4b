"""Weights from logits and normalisers that an earlier pass left: what second passes share."""

import triton
import triton.language as tl

DEAD = tl.constexpr(1e30)
"""Base-2 normaliser of a row without keys: its weights are 0, and 0 · (normaliser - x) is 0."""


@triton.jit
def load_normalisers(lse, terms, batch, head, query, valid, WHOLE: tl.constexpr):
    """Load the base-2 normaliser of each query; ``valid`` is ignored where WHOLE."""
    line = batch.to(tl.int64) * tl.num_programs(1) + head
    pointers = lse + line * terms.queries + query
    if WHOLE:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=valid, other=DEAD)


@triton.jit
def weigh(gap, SIGMOID: tl.constexpr):
    """Convert logit less normaliser, in base 2, into the weight."""
    if SIGMOID:
        e = tl.exp2(-tl.abs(gap))
        return tl.where(gap < 0.0, e, 1.0) / (1.0 + e)
    else:
        return tl.exp2(gap)


@triton.jit
def load_at(
    operand, batch, head, token, keep,
    LENGTH: tl.constexpr, SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Load tokens in any order: (LENGTH, BLOCK_SIZE), zero where not kept."""
    corner = operand.pointer + batch.to(tl.int64) * operand.batch
    corner += head.to(tl.int64) * operand.head
    channel = tl.arange(0, BLOCK_SIZE)
    lines = corner + token.to(tl.int64) * operand.token
    pointers = lines[:, None] + channel[None, :] * operand.channel
    mask = keep[:, None]
    if SIZE != BLOCK_SIZE:
        mask = mask & (channel[None, :] < SIZE)
    return tl.load(pointers, mask=mask, other=0.0)

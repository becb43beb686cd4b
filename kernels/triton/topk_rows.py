"""The largest weights of each query, exactly, in two sweeps over its keys.

The first sweep keeps, place by place of a tile, the largest logit of all tiles: each is the largest
of a group of keys, so the k-th largest of these is no more than the k-th largest of the row. The
second sweep writes down the few keys that reach it.
"""

import triton
import triton.language as tl
from headscope.kernels.triton.tile import (
    FLOOR,
    HIDDEN,
    key_terms,
    load_tokens,
    logits,
    product,
    query_terms,
    real_keys,
    real_queries,
)

NEAR = tl.constexpr(2.0**-22)
"""Relative difference below which logits count as equal: the two sweeps may round differently."""


@triton.jit
def tile_logits(
    k, q_tile, terms, first, query, rows, batch, head, group,
    SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr, PRECISION: tl.constexpr, KEYS: tl.constexpr,
    EDGE: tl.constexpr,
):  # fmt: skip
    """Compute one tile of logits."""
    key = first + tl.arange(0, KEYS)
    columns = key_terms(terms, batch, head, key, EDGE)
    keep = real_keys(terms, key, columns)
    unmasked: tl.constexpr = not EDGE and terms.key_bias.pointer is None
    k_tile = load_tokens(k, batch, head // group, first, keep, KEYS, SIZE, BLOCK_SIZE, unmasked)
    scores = product(q_tile, tl.trans(k_tile), PRECISION)
    return logits(scores, query, key, rows, columns, terms, batch, head, EDGE, False)


@triton.jit
def collect(
    x, first, low, high, above, ties, values, keys, line, count,
    KEYS: tl.constexpr, ROOM: tl.constexpr,
):  # fmt: skip
    """Write down the candidates of a tile, best first: all above, and a few as good as equal."""
    key = first + tl.arange(0, KEYS)[None, :]
    best = tl.max(x, axis=1)
    # A row that is full, or has all the equal ones that it can need, is done with.
    open_ = ((best > high) & (above <= ROOM)) | ((best >= low) & (best <= high) & (ties < count))
    while tl.max(open_.to(tl.int32), axis=0) > 0:
        index = tl.min(tl.where(x == best[:, None], key, 2147483647), axis=1)
        better = best > high
        slot = tl.where(better, above, ROOM + ties)
        written = open_ & (slot < ROOM + count) & ~(better & (above >= ROOM))
        tl.store(values + line * (ROOM + count) + slot, best, mask=written)
        tl.store(keys + line * (ROOM + count) + slot, index, mask=written)
        above += (open_ & better).to(tl.int32)
        ties += (open_ & ~better).to(tl.int32)
        x = tl.where(key == index[:, None], HIDDEN, x)
        best = tl.max(x, axis=1)
        open_ = ((best > high) & (above <= ROOM)) | (
            (best >= low) & (best <= high) & (ties < count)
        )
    return above, ties


@triton.jit
def select_top_rows(
    q, k, terms, values, keys, reached, bounds, first_head, batch, count, group,
    SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr, PRECISION: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, ROOM: tl.constexpr,
):  # fmt: skip
    """List candidates for the ``count`` largest logits of each query; grid (query tile, head).

    ``reached`` counts those above: more than ROOM mean that the list is not complete.
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head = first_head + tl.program_id(1)
    batch = tl.cast(batch, tl.int32)
    query = tile * QUERIES + tl.arange(0, QUERIES)
    inside = query < terms.queries
    real = real_queries(terms, batch, query)
    rows = query_terms(terms, batch, head, query)
    q_tile = load_tokens(q, batch, head, tile * QUERIES, real, QUERIES, SIZE, BLOCK_SIZE, False)
    edges = bounds + 4 * (batch * tl.num_programs(0) + tile)
    start = tl.load(edges)
    full_start = tl.load(edges + 1)
    full_stop = tl.load(edges + 2)
    end = start + tl.cdiv(tl.load(edges + 3) - start, KEYS) * KEYS
    full_start = tl.minimum(full_start, end)
    full_stop = tl.minimum(tl.maximum(full_stop, full_start), end)
    whole = full_stop - full_start

    peaks = tl.full((QUERIES, KEYS), HIDDEN, tl.float32)
    for first in range(start, end - whole, KEYS):
        first += tl.where(first >= full_start, whole, 0)
        x = tile_logits(
            k, q_tile, terms, first, query, rows, batch, head, group,
            SIZE, BLOCK_SIZE, PRECISION, KEYS, True,
        )  # fmt: skip
        peaks = tl.maximum(peaks, x)
    for first in range(full_start, full_stop, KEYS):
        x = tile_logits(
            k, q_tile, terms, first, query, rows, batch, head, group,
            SIZE, BLOCK_SIZE, PRECISION, KEYS, False,
        )  # fmt: skip
        peaks = tl.maximum(peaks, x)
    bar = tl.full((QUERIES,), float("inf"), tl.float32)
    passed = tl.zeros((QUERIES,), tl.int32)
    threshold = bar
    for _ in range(0, count):
        bar = tl.max(tl.where(peaks < bar[:, None], peaks, HIDDEN), axis=1)
        threshold = tl.where(passed < count, bar, threshold)
        passed += tl.sum((peaks == bar[:, None]).to(tl.int32), axis=1)
    slack = tl.abs(threshold) * NEAR
    # Hidden keys are no candidates, and rows of padding have none.
    low = tl.where(real, tl.maximum(threshold - slack, FLOOR), float("inf"))
    high = tl.where(real, tl.maximum(threshold + slack, FLOOR), float("inf"))

    line = tl.program_id(1).to(tl.int64) * terms.queries + query
    above = tl.zeros((QUERIES,), tl.int32)
    ties = tl.zeros((QUERIES,), tl.int32)
    for first in range(start, end - whole, KEYS):
        first += tl.where(first >= full_start, whole, 0)
        x = tile_logits(
            k, q_tile, terms, first, query, rows, batch, head, group,
            SIZE, BLOCK_SIZE, PRECISION, KEYS, True,
        )  # fmt: skip
        above, ties = collect(
            x, first, low, high, above, ties, values, keys, line, count, KEYS, ROOM
        )
    for first in range(full_start, full_stop, KEYS):
        x = tile_logits(
            k, q_tile, terms, first, query, rows, batch, head, group,
            SIZE, BLOCK_SIZE, PRECISION, KEYS, False,
        )  # fmt: skip
        above, ties = collect(
            x, first, low, high, above, ties, values, keys, line, count, KEYS, ROOM
        )
    tl.store(reached + line, above, mask=inside)

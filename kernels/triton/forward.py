"""The first pass: fused attention that also knows the normaliser, maximum and entropy of each row.

Every program owns a tile of queries and walks over the keys that they see, with a running maximum
``m``, normaliser ``norm`` and output ``acc`` (FlashAttention-2), all in float32 and base 2. The
entropy is the sum of two terms that are never negative, log norm and Σ p (m - x) / norm, so that
nothing cancels, however sharp the row.
"""

import triton
import triton.language as tl
from headscope.kernels.triton.tile import (
    FLOOR,
    LN2,
    head_of,
    key_terms,
    load_tokens,
    logits,
    next_tokens,
    product,
    query_terms,
    real_keys,
    real_queries,
    weights,
)

DEAD = tl.constexpr(1e30)


@triton.jit
def attend_queries(
    q, k, v, z, lse, max_weight, entropy, terms, sinks, bounds, group,
    SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr, BLOCK_VALUE: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr, SIGMOID: tl.constexpr, PLAIN: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Attend from one tile of queries; write z and what is asked of its rows.

    ``lse`` is in base 2, ``DEAD`` where a row has no keys; z is 0 there, the others NaN. It is 0
    elsewhere for sigmoid weights, which have no normaliser.
    """
    # Later tiles see more keys in causal order: they go first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    batch = tl.program_id(2)
    edges = bounds + 4 * (batch * tl.num_programs(0) + tile)
    start = tl.load(edges)
    full_start = tl.load(edges + 1)
    full_stop = tl.load(edges + 2)
    stop = tl.load(edges + 3)

    query = tile * QUERIES + tl.arange(0, QUERIES)
    real = real_queries(terms, batch, query)
    rows = query_terms(terms, batch, head, query)
    q_tile = load_tokens(q, batch, head, tile * QUERIES, real, QUERIES, SIZE, BLOCK_SIZE, False)
    k_head = head_of(k, batch, head // group, terms.keys, KEYS, SIZE, BLOCK_SIZE, TMA)
    v_head = head_of(v, batch, head // group, terms.keys, KEYS, VALUE_SIZE, BLOCK_VALUE, TMA)
    m = tl.full([QUERIES], FLOOR, tl.float32)
    norm = tl.zeros([QUERIES], tl.float32)
    if sinks is not None:
        sink = tl.load(sinks + head)
        m = tl.maximum(m, sink)
        norm += tl.where(sink > FLOOR, 1.0, 0.0)
    top = tl.full([QUERIES], FLOOR, tl.float32)
    spread = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, BLOCK_VALUE], tl.float32)
    state = (acc, m, norm, top, spread)
    state = visit(
        start, tl.minimum(full_start, stop), state, q_tile, query, rows, k, v, k_head, v_head,
        terms, batch, head, entropy, sinks, SIZE, BLOCK_SIZE, VALUE_SIZE, BLOCK_VALUE, KEYS,
        PRECISION, SIGMOID, PLAIN, TMA, True,
    )  # fmt: skip
    state = visit(
        full_start, full_stop, state, q_tile, query, rows, k, v, k_head, v_head,
        terms, batch, head, entropy, sinks, SIZE, BLOCK_SIZE, VALUE_SIZE, BLOCK_VALUE, KEYS,
        PRECISION, SIGMOID, PLAIN, TMA, False,
    )  # fmt: skip
    state = visit(
        full_stop, stop, state, q_tile, query, rows, k, v, k_head, v_head,
        terms, batch, head, entropy, sinks, SIZE, BLOCK_SIZE, VALUE_SIZE, BLOCK_VALUE, KEYS,
        PRECISION, SIGMOID, PLAIN, TMA, True,
    )  # fmt: skip
    acc, m, norm, top, spread = state
    if sinks is None:
        top = m

    alive = real & (top > FLOOR)
    norm = tl.where(alive, norm, 1.0)
    inside = query < terms.queries
    nothing = float("nan")
    row = (batch * tl.num_programs(1) + head).to(tl.int64) * terms.queries + query
    if SIGMOID:
        base2 = tl.where(alive, 0.0, DEAD)
    else:
        acc = acc / norm[:, None]
        base2 = tl.where(alive, m + tl.log2(norm), DEAD)
    tl.store(lse + row, base2, mask=inside)
    channel = tl.arange(0, BLOCK_VALUE)
    pointers = z + row[:, None] * VALUE_SIZE + channel[None, :]
    acc = tl.where(alive[:, None], acc, 0.0)
    tl.store(pointers, acc, mask=inside[:, None] & (channel < VALUE_SIZE)[None, :])
    if max_weight is not None:
        largest = weights(top, top, True) if SIGMOID else tl.exp2(top - m) / norm
        tl.store(max_weight + row, tl.where(alive, largest, nothing), mask=inside)
    if entropy is not None:
        nats = (tl.log2(norm) + spread / norm) * LN2
        tl.store(entropy + row, tl.where(alive, nats, nothing), mask=inside)


@triton.jit
def visit(
    start, stop, state, q_tile, query, rows, k, v, k_head, v_head, terms, batch, head, entropy,
    sinks, SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr, BLOCK_VALUE: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr, SIGMOID: tl.constexpr, PLAIN: tl.constexpr, TMA: tl.constexpr,
    EDGE: tl.constexpr,
):  # fmt: skip
    """Add the keys of a range to the running state of a tile of queries."""
    acc, m, norm, top, spread = state
    whole: tl.constexpr = not EDGE and terms.key_bias.pointer is None
    for first in range(start, stop, KEYS):
        key = first + tl.arange(0, KEYS)
        columns = key_terms(terms, batch, head, key, EDGE)
        keep = real_keys(terms, key, columns)
        k_tile = next_tokens(k_head, k, first, keep, KEYS, SIZE, BLOCK_SIZE, whole, TMA)
        scores = product(q_tile, tl.trans(k_tile), PRECISION)
        if PLAIN and not EDGE:
            # One multiplication less: it melts into the subtraction below.
            x = scores
            tallest = tl.max(scores, 1) * terms.factor
        else:
            x = logits(scores, query, key, rows, columns, terms, batch, head, EDGE, False)
            tallest = tl.max(x, 1)
        v_tile = next_tokens(v_head, v, first, keep, KEYS, VALUE_SIZE, BLOCK_VALUE, whole, TMA)
        if SIGMOID:
            m = tl.maximum(m, tallest)
            p = weights(x, x, True)
        else:
            higher = tl.maximum(m, tallest)
            shrink = tl.exp2(m - higher)
            if PLAIN and not EDGE:
                below = x * terms.factor - higher[:, None]
            else:
                below = x - higher[:, None]
            p = tl.exp2(below)
            if entropy is not None:
                spread = shrink * tl.fma(norm, higher - m, spread) - tl.sum(p * below, 1)
            norm = tl.fma(norm, shrink, tl.sum(p, 1))
            acc = acc * shrink[:, None]
            m = higher
        if sinks is not None:
            top = tl.maximum(top, tallest)
        acc += product(p.to(v_tile.dtype), v_tile, PRECISION)
    return acc, m, norm, top, spread

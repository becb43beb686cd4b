"""Second pass over rows: reductions of the weights of each query, from q, k and lse.

A program owns a tile of queries and walks over the keys that they see, in three loops: tiles that
order or window cut, whole tiles, and, for the histogram of distances, the tiles near the queries,
where one tile spans many bins.
"""

import triton
import triton.language as tl
from headscope.kernels.triton.tile import (
    INTERPRET,
    LN2,
    key_terms,
    load_tokens,
    logits,
    product,
    query_terms,
    real_keys,
    real_queries,
)
from headscope.kernels.triton.weights import load_normalisers, weigh


@triton.jit
def fold(x, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """Add every eighth key: sums inside a thread, as it holds every fourth pair of keys."""
    return tl.sum(tl.reshape(x, (QUERIES, KEYS // 8, 8)), axis=1)


@triton.jit
def visit(
    k, q_tile, terms, outputs, first, query, rows, normalisers, reach, batch, head, group, state,
    SIGMOID: tl.constexpr, SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr, PRECISION: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, SPANS: tl.constexpr, BINS: tl.constexpr,
    NEAR: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Weigh one tile of keys and add it to the reductions."""
    mass, entropy, value, whole, mean, spread, bins, spans = state
    key = first + tl.arange(0, KEYS)
    columns = key_terms(terms, batch, head, key, EDGE)
    keep = real_keys(terms, key, columns)
    unmasked: tl.constexpr = not EDGE and terms.key_bias.pointer is None
    k_tile = load_tokens(k, batch, head // group, first, keep, KEYS, SIZE, BLOCK_SIZE, unmasked)
    scores = product(q_tile, tl.trans(k_tile), PRECISION)
    x = logits(scores, query, key, rows, columns, terms, batch, head, EDGE, False)
    gap = x - normalisers[:, None]
    p = weigh(gap, SIGMOID)
    position = (query + terms.shift).to(tl.float32)
    distance = tl.abs(position[:, None] - key.to(tl.float32)[None, :])
    if outputs.reach is not None:
        p = tl.where(distance < reach[:, None], p, 0.0)
    if outputs.mass is not None:
        mass += fold(p, QUERIES, KEYS)
    if outputs.entropy is not None:
        entropy -= fold(p * gap, QUERIES, KEYS)
    if outputs.value is not None:
        norm_pointer = (
            outputs.norms
            + (batch * (tl.num_programs(1) // group) + head // group).to(tl.int64) * terms.keys
        )
        if EDGE:
            norm = tl.load(norm_pointer + key, mask=key < terms.keys, other=0.0)
        else:
            norm = tl.load(norm_pointer + key)
        value += fold(p * norm[None, :], QUERIES, KEYS)
    if outputs.mean is not None:
        clipped = distance
        if outputs.clip is not None:
            clipped = tl.minimum(distance, outputs.clip)
        if outputs.spread is None:
            mean += fold(p * clipped, QUERIES, KEYS)
        else:
            # Means and squares around them, tile by tile: E[d²] - E[d]² would cancel.
            part = tl.sum(p, axis=1)
            average = tl.sum(p * clipped, axis=1) / tl.where(part > 0.0, part, 1.0)
            off = clipped - average[:, None]
            total = whole + part
            share = part / tl.where(total > 0.0, total, 1.0)
            step = average - mean
            spread += tl.sum(p * off * off, axis=1) + step * step * whole * share
            mean += step * share
            whole = total
    if outputs.bins is not None:
        number = tl.arange(0, BINS)[None, :]
        if NEAR:
            before = tl.zeros((QUERIES,), tl.float32)
            # Not unrolled, which would take more registers than there are.
            for power in range(0, bins_near(QUERIES, KEYS)):
                bound = (1 << tl.cast(power, tl.int32)).to(tl.float32)
                inside = tl.sum(tl.where(distance < bound, p, 0.0), axis=1)
                bins += tl.where(number == power, (inside - before)[:, None], 0.0)
                before = inside
        else:
            start = tl.min(query, axis=0) + terms.shift
            behind = start - first - (KEYS - 1)
            nearest = tl.maximum(behind, first - start - (QUERIES - 1))
            digits = (nearest.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 126
            inside = tl.sum(tl.where(distance < (1 << digits).to(tl.float32), p, 0.0), axis=1)
            outside = tl.maximum(tl.sum(p, axis=1) - inside, 0.0)
            bins += tl.where(number == digits, inside[:, None], 0.0)
            bins += tl.where(number == digits + 1, outside[:, None], 0.0)
    if outputs.spans is not None:
        ids = outputs.span_ids + batch.to(tl.int64) * terms.keys
        span = tl.load(ids + key, mask=key < terms.keys, other=-1)
        member = (span[:, None] - outputs.first_span) == tl.arange(0, SPANS)[None, :]
        spans = add_members(p, member, spans)
    return mass, entropy, value, whole, mean, spread, bins, spans


@triton.jit
def add_members(p, member, spans):
    """Add the weights of the members of each span, with the 24 bits of float32."""
    if INTERPRET:
        # Its bfloat16 products are wrong.
        return spans + tl.dot(p, member.to(tl.float32), input_precision="ieee")
    else:
        # Three pieces of 8 bits each, whose products with 0 and 1 are exact.
        ones = member.to(tl.bfloat16)
        top = p.to(tl.bfloat16)
        rest = p - top.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        bottom = (rest - middle.to(tl.float32)).to(tl.bfloat16)
        spans = tl.dot(bottom, ones, spans)
        spans = tl.dot(middle, ones, spans)
        return tl.dot(top, ones, spans)


@triton.constexpr_function
def bins_near(queries, keys):
    """Number of bins that the tiles near the queries span: distances below 2 (queries + keys)."""
    return (2 * (queries + keys)).bit_length()


@triton.jit
def reduce_rows(
    q, k, terms, lse, outputs, bounds, group,
    SIGMOID: tl.constexpr, SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr, PRECISION: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, SPANS: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Reduce the weights of one tile of queries; grid (query tile, head, batch)."""
    # Later tiles see more keys in causal order: they go first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    batch = tl.program_id(2)
    query = tile * QUERIES + tl.arange(0, QUERIES)
    inside = query < terms.queries
    rows = query_terms(terms, batch, head, query)
    real = real_queries(terms, batch, query)
    q_tile = load_tokens(q, batch, head, tile * QUERIES, real, QUERIES, SIZE, BLOCK_SIZE, False)
    normalisers = load_normalisers(lse, terms, batch, head, query, inside, False)
    line = (batch * tl.num_programs(1) + head).to(tl.int64) * terms.queries + query

    edges = bounds + 4 * (batch * tl.num_programs(0) + tile)
    start = tl.load(edges)
    full_start = tl.load(edges + 1)
    full_stop = tl.load(edges + 2)
    stop = tl.load(edges + 3)
    position = tile * QUERIES + terms.shift
    reach = normalisers
    if outputs.reach is not None:
        reach = tl.load(outputs.reach + line, mask=inside, other=0).to(tl.float32)
        farthest = tl.max(reach, axis=0).to(tl.int32)
        start = tl.maximum(start, tl.maximum(position - farthest, 0) // KEYS * KEYS)
        stop = tl.maximum(tl.minimum(stop, position + QUERIES + farthest), start)
    end = start + tl.cdiv(stop - start, KEYS) * KEYS
    near = end
    near_stop = end
    if outputs.bins is not None:
        # Beyond these a tile spans two bins at most.
        reach_of_near: tl.constexpr = max(QUERIES, KEYS)
        near = tl.maximum(position - reach_of_near, start) // KEYS * KEYS
        near = tl.minimum(near, end)
        near_stop = tl.cdiv(position + QUERIES + reach_of_near, KEYS) * KEYS
        near_stop = tl.minimum(tl.maximum(near_stop, near), end)
    # Whole tiles before and behind the near ones, in order: left .. left_stop, right .. right_stop.
    left = tl.minimum(tl.maximum(full_start, start), near)
    left_stop = tl.minimum(tl.maximum(full_stop, left), near)
    right = tl.minimum(tl.maximum(full_start, near_stop), end)
    right_stop = tl.minimum(tl.maximum(full_stop, right), end)

    mass = tl.zeros((QUERIES, 8), tl.float32)
    entropy = tl.zeros((QUERIES, 8), tl.float32)
    value = tl.zeros((QUERIES, 8), tl.float32)
    whole = tl.zeros((QUERIES,), tl.float32)
    spread = tl.zeros((QUERIES,), tl.float32)
    if outputs.spread is None:
        mean = tl.zeros((QUERIES, 8), tl.float32)
    else:
        mean = tl.zeros((QUERIES,), tl.float32)
    bins = tl.zeros((QUERIES, BINS), tl.float32)
    spans = tl.zeros((QUERIES, SPANS), tl.float32)
    state = (mass, entropy, value, whole, mean, spread, bins, spans)
    holes = (left_stop - left) + (near_stop - near) + (right_stop - right)
    for first in range(start, end - holes, KEYS):
        first += tl.where(first >= left, left_stop - left, 0)
        first += tl.where(first >= near, near_stop - near, 0)
        first += tl.where(first >= right, right_stop - right, 0)
        state = visit(
            k, q_tile, terms, outputs, first, query, rows, normalisers, reach, batch, head, group,
            state, SIGMOID, SIZE, BLOCK_SIZE, PRECISION, QUERIES, KEYS, SPANS, BINS, False, True,
        )  # fmt: skip
    for first in range(left, right_stop - (right - left_stop), KEYS):
        first += tl.where(first >= left_stop, right - left_stop, 0)
        state = visit(
            k, q_tile, terms, outputs, first, query, rows, normalisers, reach, batch, head, group,
            state, SIGMOID, SIZE, BLOCK_SIZE, PRECISION, QUERIES, KEYS, SPANS, BINS, False, False,
        )  # fmt: skip
    if outputs.bins is not None:
        for first in range(near, near_stop, KEYS):
            state = visit(
                k, q_tile, terms, outputs, first, query, rows, normalisers, reach, batch, head,
                group, state, SIGMOID, SIZE, BLOCK_SIZE, PRECISION, QUERIES, KEYS, SPANS, BINS,
                True, True,
            )  # fmt: skip
    mass, entropy, value, whole, mean, spread, bins, spans = state

    if outputs.mass is not None:
        tl.store(outputs.mass + line, tl.sum(mass, axis=1), mask=inside)
    if outputs.entropy is not None:
        tl.store(outputs.entropy + line, tl.sum(entropy, axis=1) * LN2, mask=inside)
    if outputs.value is not None:
        tl.store(outputs.value + line, tl.sum(value, axis=1), mask=inside)
    if outputs.mean is not None:
        if outputs.spread is None:
            tl.store(outputs.mean + line, tl.sum(mean, axis=1), mask=inside)
        else:
            # Beside a learned sink the weights sum to less than 1: the mean is Σ p d even so.
            center = mean * whole
            off = mean - center
            tl.store(outputs.mean + line, center, mask=inside)
            tl.store(outputs.spread + line, spread + whole * off * off, mask=inside)
    if outputs.bins is not None:
        number = tl.arange(0, BINS)[None, :]
        pointers = outputs.bins + line[:, None] * outputs.bin_count + number
        tl.store(pointers, bins, mask=inside[:, None] & (number < outputs.bin_count))
    if outputs.spans is not None:
        span = outputs.first_span + tl.arange(0, SPANS)[None, :]
        pointers = outputs.spans + line[:, None] * outputs.span_count + span
        tl.store(pointers, spans, mask=inside[:, None] & (span < outputs.span_count))

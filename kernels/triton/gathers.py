"""Single weights: those of a few keys for each query, and whole rows of a few queries."""

import triton
import triton.language as tl
from headscope.kernels.triton.tile import (
    key_terms,
    load_tokens,
    logits,
    product,
    query_terms,
    real_keys,
    real_queries,
)
from headscope.kernels.triton.weights import load_at, load_normalisers, weigh


@triton.jit
def pair(
    q_tile, k, terms, query, rows, key, batch, head, group,
    PAIRS: tl.constexpr, SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Compute base-2 logits of pairs of a query and a key; a key too far is hidden."""
    columns = key_terms(terms, batch, head, key, True)
    keep = real_keys(terms, key, columns)
    k_tile = load_at(k, batch, head // group, key, keep, PAIRS, SIZE, BLOCK_SIZE)
    scores = tl.sum(q_tile * k_tile.to(tl.float32), axis=1)
    return logits(scores, query, key, rows, columns, terms, batch, head, True, None)


@triton.jit
def gather_weights(
    q, k, terms, lse, chosen, out, choices, occurrences, group,
    SIGMOID: tl.constexpr, SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """Add the weights of the occurrences of each choice; grid (query tile, head, batch).

    ``chosen`` (batch, query, choice · occurrence) holds keys, -1 for none.
    """
    head = tl.program_id(1)
    batch = tl.program_id(2)
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    inside = query < terms.queries
    real = real_queries(terms, batch, query)
    rows = query_terms(terms, batch, head, query)
    q_tile = load_at(q, batch, head, query, real, QUERIES, SIZE, BLOCK_SIZE).to(tl.float32)
    normalisers = load_normalisers(lse, terms, batch, head, query, inside, False)
    line = (batch * tl.num_programs(1) + head).to(tl.int64) * terms.queries + query
    keys = chosen.pointer + batch.to(tl.int64) * chosen.batch + query.to(tl.int64) * chosen.token
    for choice in range(0, choices):
        total = tl.zeros((QUERIES,), tl.float32)
        for occurrence in range(0, occurrences):
            key = tl.load(keys + choice * occurrences + occurrence, mask=inside, other=-1)
            key = tl.where(key < 0, terms.keys, key)
            x = pair(
                q_tile, k, terms, query, rows, key, batch, head, group, QUERIES, SIZE, BLOCK_SIZE
            )
            total += weigh(x - normalisers, SIGMOID)
        tl.store(out + line * choices + choice, total, mask=inside)


@triton.jit
def write_lines(
    q, k, terms, lines, out, heads, group,
    SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Write all base-2 logits of some rows; grid (row, key tile).

    ``lines`` holds (batch · heads + head) · queries + query of each row.
    """
    number = tl.program_id(0)
    line = tl.load(lines + number)
    head = (line // terms.queries % heads).to(tl.int32)
    batch = (line // terms.queries // heads).to(tl.int32)
    key = tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    query = (line % terms.queries).to(tl.int32) + tl.zeros((KEYS,), tl.int32)
    rows = query_terms(terms, batch, head, query)
    real = real_queries(terms, batch, query)
    q_tile = load_at(q, batch, head, query, real, KEYS, SIZE, BLOCK_SIZE).to(tl.float32)
    x = pair(q_tile, k, terms, query, rows, key, batch, head, group, KEYS, SIZE, BLOCK_SIZE)
    pointers = out + number.to(tl.int64) * terms.keys + key
    tl.store(pointers, x, mask=key < terms.keys)


@triton.jit
def write_panel(
    q, k, terms, out, first_query, batch, head, group,
    SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr, PRECISION: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Write all base-2 logits of the queries from ``first_query``; grid (query tile, key tile)."""
    batch = tl.cast(batch, tl.int32)
    head = tl.cast(head, tl.int32)
    start = first_query + tl.program_id(0) * QUERIES
    query = start + tl.arange(0, QUERIES)
    rows = query_terms(terms, batch, head, query)
    real = real_queries(terms, batch, query)
    first = tl.program_id(1) * KEYS
    key = first + tl.arange(0, KEYS)
    columns = key_terms(terms, batch, head, key, True)
    keep = real_keys(terms, key, columns)
    q_tile = load_tokens(q, batch, head, start, real, QUERIES, SIZE, BLOCK_SIZE, False)
    k_tile = load_tokens(k, batch, head // group, first, keep, KEYS, SIZE, BLOCK_SIZE, False)
    scores = product(q_tile, tl.trans(k_tile), PRECISION)
    x = logits(scores, query, key, rows, columns, terms, batch, head, True, False)
    line = (query - first_query).to(tl.int64) * terms.keys
    inside = (query < terms.queries)[:, None] & (key < terms.keys)[None, :]
    tl.store(out + line[:, None] + key[None, :], x, mask=inside)

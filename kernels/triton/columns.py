"""Second pass over columns: what keys receive, and pooled maps, from q, k and lse.

Keys lie along the rows of a tile and a program keeps its keys while it walks over the queries that
see them: sums over queries stay in the registers of a thread, no program adds to what another
wrote, and two runs give the same bits.
"""

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
def tokens_of(
    block, length, cells,
    PLACES: tl.constexpr, CELL: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """List the tokens of a kernel's tile and which slots hold one; others name a token too far."""
    offset = tl.arange(0, PLACES)
    if PLAIN:
        token = block * PLACES + offset
        return token, token < length
    else:
        cell = block * (PLACES // CELL) + offset // CELL
        part = cell % cells.parts
        within = offset % CELL
        token = cell // cells.parts * cells.tile + part * cells.step + within
        width = tl.minimum(cells.step, cells.tile - part * cells.step)
        keep = (within < width) & (token < length)
        return tl.where(keep, token, length), keep


@triton.jit
def visit(
    q, k_tile, terms, lse, pooled, cells, block, key_block, key, kept, columns, batch, head,
    sums, peaks,
    SUM: tl.constexpr, PEAK: tl.constexpr, SIGMOID: tl.constexpr,
    SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr, PRECISION: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, CELL: tl.constexpr, PLAIN: tl.constexpr,
    EDGE: tl.constexpr,
):  # fmt: skip
    """Weigh one tile of queries against the keys of the program, and reduce the weights."""
    ROW_CELLS: tl.constexpr = QUERIES // CELL
    KEY_CELLS: tl.constexpr = KEYS // CELL
    # Of a product's columns a thread holds every fourth pair: eight folds add without exchange.
    FOLD: tl.constexpr = min(CELL, 8)
    WHOLE: tl.constexpr = PLAIN and not EDGE
    query, inside = tokens_of(block, terms.queries, cells, QUERIES, CELL, PLAIN)
    rows = query_terms(terms, batch, head, query)
    real = real_queries(terms, batch, query)
    if PLAIN:
        unmasked: tl.constexpr = WHOLE and terms.query_mask.pointer is None
        q_tile = load_tokens(
            q, batch, head, block * QUERIES, real, QUERIES, SIZE, BLOCK_SIZE, unmasked
        )
    else:
        q_tile = load_at(q, batch, head, query, real, QUERIES, SIZE, BLOCK_SIZE)
    normalisers = load_normalisers(lse, terms, batch, head, query, inside, WHOLE)
    scores = product(k_tile, tl.trans(q_tile), PRECISION)
    x = logits(scores, query, key, rows, columns, terms, batch, head, EDGE, True)
    gap = x - normalisers[None, :]
    if not PLAIN:
        # Empty slots among the keys are left out below, but may not overflow until then.
        gap = tl.minimum(gap, 0.0)
    p = weigh(gap, SIGMOID)
    shape: tl.constexpr = (KEYS, ROW_CELLS, CELL // FOLD, FOLD)
    cut: tl.constexpr = (KEY_CELLS, CELL, ROW_CELLS, FOLD)
    POOL_SUM: tl.constexpr = pooled.sums is not None
    POOL_PEAK: tl.constexpr = pooled.peaks is not None
    if SUM or POOL_SUM:
        part = tl.sum(tl.reshape(p, shape), axis=2)
        if SUM:
            sums += tl.sum(part, axis=1)
        if POOL_SUM:
            if not PLAIN:
                part = tl.where(kept[:, None, None], part, 0.0)
            total = tl.sum(tl.sum(tl.reshape(part, cut), axis=1), axis=2)
            store_cells(
                pooled.sums, total, pooled, block, key_block, batch, head, ROW_CELLS, KEY_CELLS
            )
    if PEAK or POOL_PEAK:
        part = tl.max(tl.reshape(p, shape), axis=2)
        if PEAK:
            peaks = tl.maximum(peaks, tl.max(part, axis=1))
        if POOL_PEAK:
            if not PLAIN:
                part = tl.where(kept[:, None, None], part, 0.0)
            total = tl.max(tl.max(tl.reshape(part, cut), axis=1), axis=2)
            store_cells(
                pooled.peaks, total, pooled, block, key_block, batch, head, ROW_CELLS, KEY_CELLS
            )
    return sums, peaks


@triton.jit
def store_cells(
    offset, total, pooled, block, key_block, batch, head,
    ROW_CELLS: tl.constexpr, KEY_CELLS: tl.constexpr,
):  # fmt: skip
    """Write the cells (key, query) of a tile of the kernel."""
    row = block * ROW_CELLS + tl.arange(0, ROW_CELLS)
    column = key_block * KEY_CELLS + tl.arange(0, KEY_CELLS)
    line = batch.to(tl.int64) * tl.num_programs(1) + head
    corner = offset + (line * pooled.rows + block * ROW_CELLS) * pooled.columns
    offsets = tl.arange(0, ROW_CELLS)[None, :] * pooled.columns + column[:, None]
    inside = (row[None, :] < pooled.rows) & (column[:, None] < pooled.columns)
    tl.store(corner + offsets, total, mask=inside)


@triton.jit
def reduce_columns(
    q, k, terms, lse, sums_out, peaks_out, pooled, cells, bounds, group,
    SIGMOID: tl.constexpr, SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr, PRECISION: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, CELL: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """Reduce the weights of one tile of keys over all queries; grid (key tile, head, batch)."""
    SUM: tl.constexpr = sums_out is not None
    PEAK: tl.constexpr = peaks_out is not None
    FOLD: tl.constexpr = min(CELL, 8)
    key_block = tl.program_id(0)
    head = tl.program_id(1)
    batch = tl.program_id(2)
    key, kept = tokens_of(key_block, terms.keys, cells, KEYS, CELL, PLAIN)
    columns = key_terms(terms, batch, head, key, True)
    loaded = kept & real_keys(terms, key, columns)
    k_tile = load_at(k, batch, head // group, key, loaded, KEYS, SIZE, BLOCK_SIZE)
    sums = tl.zeros((KEYS, FOLD), tl.float32)
    peaks = tl.zeros((KEYS, FOLD), tl.float32)
    bounds += (batch * tl.num_programs(0) + key_block) * 4
    start = tl.load(bounds)
    full_start = tl.load(bounds + 1)
    full_stop = tl.load(bounds + 2)
    before = full_start - start
    for step in range(0, before + tl.load(bounds + 3) - full_stop):
        block = tl.where(step < before, start + step, full_stop + step - before)
        sums, peaks = visit(
            q, k_tile, terms, lse, pooled, cells, block, key_block, key, kept, columns, batch,
            head, sums, peaks, SUM, PEAK, SIGMOID, SIZE, BLOCK_SIZE, PRECISION,
            QUERIES, KEYS, CELL, PLAIN, True,
        )  # fmt: skip
    for block in range(full_start, full_stop):
        sums, peaks = visit(
            q, k_tile, terms, lse, pooled, cells, block, key_block, key, kept, columns, batch,
            head, sums, peaks, SUM, PEAK, SIGMOID, SIZE, BLOCK_SIZE, PRECISION,
            QUERIES, KEYS, CELL, PLAIN, False,
        )  # fmt: skip
    line = batch.to(tl.int64) * tl.num_programs(1) + head
    offsets = line * terms.keys + key
    if SUM:
        tl.store(sums_out + offsets, tl.sum(sums, axis=1), mask=kept)
    if PEAK:
        tl.store(peaks_out + offsets, tl.max(peaks, axis=1), mask=kept)

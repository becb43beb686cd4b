"""Tiles of a pooled map: the best ones of each row, window and columns, and their causal check."""

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.next_token_loss import losses, tokens
from headscope.analyses._runtime.verdict import Verdict, causal_verdict
from headscope.analyses._stats.bootstrap import Array
from headscope.kernels.formatting import amount
from headscope.probes.interventions.block_mask import Blocks
from headscope.probes.models.model import Model

# Rows are sums of float32: a row that holds all of its mass may miss 1 by this much.
SLACK = 1e-5


def maps(capture: xr.Dataset) -> tuple[Array, Array, Array]:
    """Return the maps with rows that sum to 1, queries of each row, and blocks each row sees.

    Dims prompt, layer, head, row, column; prompt, 1, 1, row; prompt, layer, 1, row. Rows beyond a
    prompt and layers without a map are NaN.
    """
    pooled = capture["pooled_mean"].transpose("prompt", "layer", "head", "query_tile", "key_tile")
    values = pooled.values.astype(np.float64)
    values = np.where(np.isnan(values).all(-1, keepdims=True), np.nan, np.nan_to_num(values))
    total = values.sum(-1, keepdims=True)
    shares = values / np.where(total > 0, total, np.nan)
    tile, count = int(capture.attrs["tile"]), values.shape[-1]
    lengths = capture["length"].values
    starts = tile * np.arange(count)
    queries = np.clip(lengths[:, None] - starts, 0, tile).astype(np.float64)
    return shares, queries[:, None, None], _visible(capture, tile, count)


def _visible(capture: xr.Dataset, tile: int, count: int) -> Array:
    """Count the blocks that hold a key some query of each row sees (prompt, layer, 1, row)."""
    lengths, windows = capture["length"].values[:, None, None], capture["window"].values[:, None]
    start = tile * np.arange(count)
    reach = np.where(np.isnan(windows), lengths, windows)
    first = np.maximum(start - reach + 1, 0) // tile
    final = np.minimum(start + tile, lengths) - 1
    last = np.minimum(final + reach - 1, lengths - 1)
    last = np.where(capture["causal"].values[:, None], final, last)
    return np.where(start < lengths, last // tile - first + 1, np.nan)[:, :, None]


def average(values: Array, queries: Array) -> Array:
    """Average over the rows of tiles, each by its queries."""
    axis = 3
    weights = np.broadcast_to(queries, values.shape)
    present = ~np.isnan(values) & (weights > 0)
    total = np.where(present, weights, 0.0).sum(axis)
    weighted = np.where(present, values * weights, 0.0).sum(axis)
    return np.asarray(weighted / np.where(total > 0, total, np.nan))


def sorted_sums(shares: Array) -> Array:
    """Add up each row's shares, largest first."""
    return np.asarray(np.cumsum(-np.sort(-shares, axis=-1), axis=-1))


def needed(shares: Array, mass: float) -> Array:
    """Count the fewest tiles of each row that hold a share of its mass, NaN without a map."""
    sums = sorted_sums(shares)
    missing = np.isnan(sums).any(-1)
    return np.where(missing, np.nan, (sums < mass - SLACK).sum(-1) + 1.0)


def decompose(shares: Array, queries: Array, window: int) -> tuple[Array, Array]:
    """Return the mass in the window, and of each column outside it, most first."""
    position = np.arange(shares.shape[-1])
    inside = np.abs(position[:, None] - position) < window
    near = average(np.where(inside, shares, 0.0).sum(-1) + 0 * shares[..., 0], queries)
    outside = np.where(inside & ~np.isnan(shares), 0.0, shares)
    columns = average(outside, queries[..., None])
    return near, -np.sort(-columns, axis=-1)


def _rank(scores: Array) -> NDArray[np.int64]:
    """Number the blocks of each row from the largest score on, 0 first."""
    order = np.argsort(-np.nan_to_num(scores, nan=-1.0), axis=-1, kind="stable")
    return np.asarray(order.argsort(-1))


def sparse_loss(
    capture: xr.Dataset, model: Model, shares: Array, fewest: Array, prompts: int, seed: int
) -> tuple[Array, Verdict]:
    """Return the loss with all, the needed and random blocks (prompt, condition), and a verdict.

    The random blocks are as many, drawn among the earlier ones; the diagonal is in both.
    """
    generator = np.random.default_rng(seed)
    tile, blocks = int(capture.attrs["tile"]), shares.shape[-1]
    block = np.arange(blocks)
    lower, diagonal = block[:, None] >= block, block[:, None] == block
    costs = []
    usable = [(row, ids) for row, ids in enumerate(tokens(capture)) if len(ids) > 1][:prompts]
    for row, ids in usable:
        members = tuple(position // tile for position in range(len(ids)))
        # Rows without a number belong to no prompt or no map: they stay whole.
        whole = np.isnan(shares[row]).all(-1, keepdims=True)
        best = _rank(shares[row]) < fewest[row][..., None]
        best = (best & lower) | diagonal
        random = np.where(diagonal, 2.0, generator.random(best.shape)) * lower
        random = (_rank(random) < best.sum(-1, keepdims=True)) & lower
        edits = [(Blocks(members, torch.from_numpy(keep | whole)),) for keep in (best, random)]
        costs.append([float(losses(model, ids, edit).mean()) for edit in ((), *edits)])
    loss = np.array(costs)
    mean = loss.mean(0)
    text = (
        f"of a loss of {amount(mean[0])} nats, keeping the needed blocks alone changes "
        f"{amount(mean[1] - mean[0], '+')}, keeping as many random ones "
        f"{amount(mean[2] - mean[0], '+')}"
    )
    return loss, causal_verdict(loss[:, 2] - loss[:, 1], text)

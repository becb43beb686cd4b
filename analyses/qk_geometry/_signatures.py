"""Signatures: the rows of every head in few numbers, at any length."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._measurements import qk_rows
from headscope.analyses._measurements.qk_rows import Array
from headscope.analyses._runtime.results import attending

# Keys this near to the query have a cell of their own, the query's own first.
NEAR = 8
# Cells of equal width over the rest of the prompt.
TILES = 32
WHAT = (
    f"rows pooled into the first key, the {NEAR} nearest on each side, {TILES} tiles of the rest, "
    "and what a learned sink takes"
)


def cells(positions: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Number the cell that each key falls into, by query (row, key).

    >>> cells(np.array([3]), 4).tolist()
    [[0, 3, 2, 1]]
    """
    keys = np.arange(length)
    distance = positions[:, None] - keys[None, :]
    cell = 1 + 2 * NEAR + np.broadcast_to(keys * TILES // length, distance.shape)
    cell = np.where((distance >= 0) & (distance < NEAR), 1 + distance, cell)
    cell = np.where((distance < 0) & (distance >= -NEAR), NEAR - distance, cell)
    return np.where(keys[None, :] == 0, 0, cell)


def of_prompt(capture: xr.Dataset, prompt: int, positions: NDArray[np.int64]) -> Array:
    """Return the pooled rows of every head (layer, head, row, cell); each sums to 1.

    NaN in layers without an attention map.
    """
    length = int(capture["length"].values[prompt])
    number = cells(positions, length)
    count = 2 + 2 * NEAR + TILES
    shape = (capture.sizes["layer"], capture.sizes["head"], len(positions), count)
    pooled = np.full(shape, np.nan)
    for layer in np.flatnonzero(attending(capture)):
        weights = qk_rows.rows(capture, prompt, int(layer), positions).weights()
        for row, into in enumerate(number):
            member = np.zeros((length, count))
            member[np.arange(length), into] = 1.0
            pooled[layer, :, row] = weights[:, row] @ member
        pooled[layer, ..., -1] = (1.0 - weights.sum(-1)).clip(0.0)
    return pooled


def divergences(rows: Array) -> Array:
    """Return the Jensen–Shannon divergence of every two distributions, in bits.

    Averaged over the rows: from (item, row, cell) to (item, item).

    >>> divergences(np.array([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 0.0]]])).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]

    Source: Clark et al., What Does BERT Look At?, for heads (there summed over the rows).
    """
    own = _entropy(rows)
    upper = np.zeros((len(rows), len(rows)))
    for item in range(len(rows)):
        middle = _entropy((rows[item] + rows[item:]) / 2)
        upper[item, item:] = (middle - (own[item] + own[item:]) / 2).mean(-1)
    return np.asarray((upper + upper.T).clip(0.0, 1.0))


def _entropy(shares: Array) -> Array:
    """Return the entropy of distributions over cells, in bits."""
    logs = np.log2(np.where(shares > 0, shares, 1.0))
    return np.asarray(-(shares * logs).sum(-1))

"""Signatures: what the rows of every head look like, in few numbers at any length."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._measurements import qk_rows
from headscope.analyses._runtime.results import attending

Array = NDArray[np.float64]
# Keys this near to the query have a cell of their own, the query's own first.
NEAR = 8
# Cells of equal width over the rest of the prompt.
TILES = 32
WHAT = (
    f"rows pooled into the first key, the {NEAR} nearest on each side, {TILES} tiles of the rest, "
    "and what a learned sink takes"
)


def cells(places: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Number the cell that each key falls into, by query (row, key).

    >>> import numpy as np
    >>> cells(np.array([3]), 4).tolist()
    [[0, 3, 2, 1]]
    """
    keys = np.arange(length)
    distance = places[:, None] - keys[None, :]
    found = 1 + 2 * NEAR + np.broadcast_to(keys * TILES // length, distance.shape)
    found = np.where((distance >= 0) & (distance < NEAR), 1 + distance, found)
    found = np.where((distance < 0) & (distance >= -NEAR), NEAR - distance, found)
    return np.where(keys[None, :] == 0, 0, found)


def of_prompt(capture: xr.Dataset, prompt: int, places: NDArray[np.int64]) -> Array:
    """Return the pooled rows of every head (layer, head, row, cell); each sums to 1.

    NaN in layers without an attention map.
    """
    length = int(capture["length"].values[prompt])
    number = cells(places, length)
    count = 2 + 2 * NEAR + TILES
    shape = (capture.sizes["layer"], capture.sizes["head"], len(places), count)
    found = np.full(shape, np.nan)
    for layer in np.flatnonzero(attending(capture)):
        weights = qk_rows.rows(capture, prompt, int(layer), places).weights()
        for row, into in enumerate(number):
            member = np.zeros((length, count))
            member[np.arange(length), into] = 1.0
            found[layer, :, row] = weights[:, row] @ member
        found[layer, ..., -1] = (1.0 - weights.sum(-1)).clip(0.0)
    return found


def divergences(rows: Array) -> Array:
    """Return the Jensen–Shannon divergence of every two distributions, in bits.

    Averaged over the rows: from (item, row, cell) to (item, item).

    >>> import numpy as np
    >>> divergences(np.array([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 0.0]]])).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]

    Source: Clark et al., What Does BERT Look At?, for heads (there summed over the rows).
    """
    own = _entropy(rows)
    found = np.zeros((len(rows), len(rows)))
    for one in range(len(rows)):
        middle = _entropy((rows[one] + rows[one:]) / 2)
        found[one, one:] = (middle - (own[one] + own[one:]) / 2).mean(-1)
    return np.asarray((found + found.T).clip(0.0, 1.0))


def _entropy(shares: Array) -> Array:
    logs = np.log2(np.where(shares > 0, shares, 1.0))
    return np.asarray(-(shares * logs).sum(-1))

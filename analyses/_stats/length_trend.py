"""Growth with length: how much a query sees, means by octave of that, slopes over the octaves."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

Array = NDArray[np.float64]


def visible(capture: xr.Dataset) -> Array:
    """Count the keys that each query sees (prompt, layer, query), NaN beyond a prompt."""
    lengths, windows = capture["length"].values[:, None, None], capture["window"].values[:, None]
    position = np.arange(int(lengths.max()))
    reach = np.where(np.isnan(windows), lengths, windows)
    after = np.minimum(lengths - 1 - position, reach - 1)
    after = np.where(capture["causal"].values[:, None], 0, after)
    return np.where(position < lengths, np.minimum(position + 1, reach) + after, np.nan)


def so_far(capture: xr.Dataset) -> Array:
    """Count the tokens up to each query (prompt, layer, query), NaN beyond a prompt."""
    lengths = capture["length"].values
    counts = np.arange(1.0, int(lengths.max()) + 1)
    inside = np.where(counts <= lengths[:, None], counts, np.nan)
    return np.repeat(inside[:, None], capture.sizes["layer"], axis=1)


def per_query(capture: xr.Dataset, name: str) -> Array:
    """Return a statistic with dims prompt, layer, head, query, in float64."""
    values = capture[name].transpose("prompt", "layer", "head", "query", ...).values
    return np.asarray(values, dtype=np.float64)


def octaves(counts: Array, least: int) -> list[tuple[int, int]]:
    """List the octaves [n, 2n) of counts, from ``least`` on, the last up to the largest count.

    A last octave that is less than half there belongs to the one before: few queries make it.

    >>> import numpy as np
    >>> octaves(np.arange(1.0, 21.0), 4), octaves(np.arange(1.0, 31.0), 4)
    ([(4, 8), (8, 21)], [(4, 8), (8, 16), (16, 31)])
    """
    most = int(np.nanmax(counts, initial=0))
    bins = []
    while least <= most:
        bins.append((least, min(2 * least, most + 1)))
        least *= 2
    if len(bins) > 1 and most + 1 < 1.5 * bins[-1][0]:
        bins[-2:] = [(bins[-2][0], most + 1)]
    return bins


def by_octave(values: Array, visible: Array, bins: list[tuple[int, int]]) -> tuple[Array, Array]:
    """Average by octave: the visible keys (prompt, layer, bin), the values (…, head, bin)."""
    counts = np.full((*visible.shape[:2], len(bins)), np.nan)
    means = np.full((*values.shape[:3], len(bins)), np.nan)
    for number, (low, high) in enumerate(bins):
        inside = (visible >= low) & (visible < high)
        counts[..., number] = mean(np.where(inside, visible, np.nan))
        means[..., number] = mean(np.where(inside[:, :, None], values, np.nan))
    return counts, means


def slope(x: Array, y: Array) -> Array:
    """Return the least-squares slope along the last axis, NaN with fewer than two points."""
    x, y = np.broadcast_arrays(x, y)
    present = ~np.isnan(x) & ~np.isnan(y)
    off = np.where(present, x - mean(np.where(present, x, np.nan))[..., None], 0.0)
    rise = np.where(present, y - mean(np.where(present, y, np.nan))[..., None], 0.0)
    spread = (off**2).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(spread > 0, (off * rise).sum(-1) / spread, np.nan))


def mean(values: Array, axes: int | tuple[int, ...] = -1) -> Array:
    """Average the known values along some axes, NaN where there is none.

    >>> mean(np.array([[1.0, np.nan], [3.0, np.nan]]), 0).tolist()
    [2.0, nan]
    """
    present = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(present, values, 0.0).sum(axes) / present.sum(axes))


def length_note(capture: xr.Dataset) -> str:
    """Return how long the prompts are."""
    low, high = int(capture["length"].min()), int(capture["length"].max())
    return f"{low} tokens" if low == high else f"{low} to {high} tokens"

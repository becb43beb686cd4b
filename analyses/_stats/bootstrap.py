"""Intervals of means over prompts, by the bootstrap."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# Share of the resampled means that an interval covers, and what it leaves out on each side.
LEVEL = 0.95
TAIL = (1 - LEVEL) / 2


def draws(count: int, resamples: int, seed: int) -> Array:
    """Return how often each of ``count`` samples is drawn, per resample (resamples, count)."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(count, np.full(count, 1 / count), size=resamples).astype(float)


def bootstrap(
    samples: NDArray[Any], *, resamples: int = 1000, seed: int = 0
) -> tuple[Array, Array, Array]:
    """Return mean over the first axis, and both ends of its 95 % percentile-bootstrap interval.

    ``samples`` has one row a prompt (prompt, ...). Missing values (NaN) are left out of each mean.
    With a single sample there is no interval and both ends are NaN: one prompt says nothing about
    the next.

    Examples
    --------
    >>> import numpy as np
    >>> mean, lower, upper = bootstrap(np.array([0.0, 1.0, 2.0, 3.0]))
    >>> float(mean), bool(lower < mean < upper)
    (1.5, True)

    Source: Efron, Bootstrap Methods (1979), percentile interval.
    """
    values = np.asarray(samples, dtype=float)
    flat = values.reshape(len(values), -1)
    present = ~np.isnan(flat)
    filled = np.where(present, flat, 0.0)
    shape = values.shape[1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (filled.sum(0) / present.sum(0)).reshape(shape)
        if len(values) < 2:
            missing = np.full(shape, np.nan)
            return mean, missing, missing.copy()
        weights = draws(len(values), resamples, seed)
        means = (weights @ filled) / (weights @ present.astype(float))
    lower, upper = percentiles(means, TAIL)
    return mean, lower.reshape(shape), upper.reshape(shape)


def percentiles(resampled: Array, tail: float) -> tuple[Array, Array]:
    """Return the two ends that leave ``tail`` of the resamples on each side (column,).

    NaN where all resamples are.
    """
    present = ~np.isnan(resampled)
    # np.nanquantile warns on columns without any value; give those a dummy and blank them after.
    filled = np.where(present.any(0), resampled, 0.0)
    # Without columns np.nanquantile forgets that it was asked for two ends.
    ends = np.nanquantile(filled, [tail, 1 - tail], axis=0).reshape(2, *filled.shape[1:])
    empty = ~present.any(0)
    return np.where(empty, np.nan, ends[0]), np.where(empty, np.nan, ends[1])


def t_interval(samples: Array, low: float = 0.0, high: float = 1.0) -> tuple[Array, Array, Array]:
    """Return the mean over trials (first axis) and its 95 % t interval, cut to the bounds."""
    from scipy.stats import t

    count = len(samples)
    mean = samples.mean(0)
    half = t.ppf(0.975, count - 1) * samples.std(0, ddof=1) / np.sqrt(count)
    return mean, np.clip(mean - half, low, high), np.clip(mean + half, low, high)


def crossed(samples: NDArray[Any], *, seed: int = 0) -> tuple[float, float, float]:
    """Return mean and interval of a number measured on random draws and prompts (draw, prompt).

    Both are resampled together, so the interval covers other prompts and other draws. NaN ends
    with fewer than two of either.
    """
    values = np.asarray(samples, dtype=float)
    mean = float(values.mean())
    rows, columns = values.shape
    if rows < 2 or columns < 2:
        return mean, float("nan"), float("nan")
    row_weights = draws(rows, 1000, seed) / rows
    column_weights = draws(columns, 1000, seed + 1) / columns
    means = np.einsum("sd,dp,sp->s", row_weights, values, column_weights)
    lower, upper = np.quantile(means, [TAIL, 1 - TAIL])
    return mean, float(lower), float(upper)

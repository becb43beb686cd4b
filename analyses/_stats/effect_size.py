"""Effect sizes of two conditions, with their intervals, and what is significant among many."""

import numpy as np
from numpy.typing import NDArray

from headscope.analyses._stats.bootstrap import LEVEL, Array, percentiles

RESAMPLES = 500
# With fewer, a t test over prompts of hundreds of heads says little.
LEAST_PROMPTS = 16


def cohen(first: Array, second: Array, floor: float, *, paired: bool) -> Array:
    """Return Cohen's d of every score (...): mean difference over its spread.

    Paired: over the standard deviation of the differences (d_z); else over the pooled one. A spread
    below ``floor`` counts as ``floor``: what changes alike on every prompt would have no end.
    Scores are (prompt, ...), paired row by row or of different numbers of prompts.
    """
    return np.asarray(
        (first.mean(0) - second.mean(0)) / spread(first, second, floor, paired=paired)
    )


def spread(first: Array, second: Array, floor: float, *, paired: bool) -> Array:
    """Return the standard deviation that differences are measured in, ``floor`` at least."""
    if paired:
        deviation = (first - second).std(0, ddof=1)
    else:
        free = len(first) + len(second) - 2
        squares = (len(first) - 1) * first.var(0, ddof=1) + (len(second) - 1) * second.var(
            0, ddof=1
        )
        deviation = np.sqrt(squares / free)
    return np.asarray(np.maximum(deviation, floor))


def intervals(
    first: Array, second: Array, floor: float, *, paired: bool, seed: int
) -> tuple[Array, Array, Array]:
    """Return d and the ends of its 95 % bootstrap interval over prompts.

    Pairs are drawn together; the parameters are those of :func:`cohen`.
    """
    sizes = []
    rng = np.random.default_rng(seed)
    for _ in range(RESAMPLES):
        rows = rng.integers(0, len(first), len(first))
        second_rows = rows if paired else rng.integers(0, len(second), len(second))
        sizes.append(cohen(first[rows], second[second_rows], floor, paired=paired))
    lower, upper = percentiles(np.stack(sizes), 0.025)
    return cohen(first, second, floor, paired=paired), lower, upper


def p_values(first: Array, second: Array, floor: float, *, paired: bool) -> Array:
    """Return the two-sided p of a t test of every score (...); the spread has the same floor."""
    from scipy.stats import t

    size = cohen(first, second, floor, paired=paired)
    if paired:
        count, free = np.sqrt(len(first)), len(first) - 1
    else:
        count = np.sqrt(len(first) * len(second) / (len(first) + len(second)))
        free = len(first) + len(second) - 2
    return np.asarray(2 * t.sf(np.abs(size) * count, free))


def adjusted(values: Array) -> Array:
    """Return p values adjusted by Benjamini and Hochberg over all that are not NaN.

    Source: Benjamini and Hochberg, Controlling the False Discovery Rate (1995).
    """
    from scipy.stats import false_discovery_control

    present = ~np.isnan(values)
    result = np.full(values.shape, np.nan)
    if present.any():
        result[present] = false_discovery_control(values[present])
    return result


def differs_from_zero(samples: Array) -> NDArray[np.bool_]:
    """Mark the scores (...) whose mean over prompts (prompt, ...) is not 0.

    A t test of each, adjusted over all of them, so that of those marked no more than 5 % are 0.
    Missing values (NaN) are left out.
    """
    from scipy.stats import t

    present = ~np.isnan(samples)
    count = present.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(present, samples, 0.0).sum(0) / count
        off = np.sqrt(np.where(present, (samples - mean) ** 2, 0.0).sum(0) / (count - 1))
        size = np.where(mean == 0, 0.0, np.abs(mean) / off * np.sqrt(count))
    return np.asarray(adjusted(2 * t.sf(size, count - 1)) < 1 - LEVEL)


def exceeds_zero(samples: Array) -> NDArray[np.bool_]:
    """Mark the scores (...) whose mean over prompts (prompt, ...) is above 0, by the same test."""
    return np.asarray(differs_from_zero(samples) & (np.nan_to_num(samples).sum(0) > 0))

"""Agreement of scores of heads: between methods, between halves of the prompts, between draws."""

from collections.abc import Mapping

import numpy as np

from headscope.analyses._runtime.results import labels
from headscope.analyses._stats.bootstrap import Array, draws, percentiles
from headscope.kernels.formatting import ordinal

RESAMPLES = 300
HALVES = 50
# What `agreement` measures, as results state it.
OVER_HEADS = "rank correlation over heads of the absolute means over prompts"


def agreement(
    first: Array, second: Array, seed: int, *, paired: bool = True
) -> tuple[float, float, float]:
    """Return Spearman's ρ over heads of |mean over prompts|, with its 95 % interval over prompts.

    Scores are (prompt, layer, head); heads with NaN on either side are left out. ``paired`` scores
    have the same prompts, which are resampled together. NaN ends with one prompt.
    """
    left, right = (scores.reshape(len(scores), -1) for scores in (first, second))
    present = ~(np.isnan(left).any(0) | np.isnan(right).any(0))
    left, right = left[:, present], right[:, present]
    rho = ranked(np.abs(left.mean(0)), np.abs(right.mean(0)))
    if min(len(left), len(right)) < 2:
        return rho, float("nan"), float("nan")
    first_weights = draws(len(left), RESAMPLES, seed) / len(left)
    second_weights = (
        first_weights if paired else draws(len(right), RESAMPLES, seed + 1) / len(right)
    )
    resampled = [
        ranked(a, b)
        for a, b in zip(np.abs(first_weights @ left), np.abs(second_weights @ right), strict=True)
    ]
    lower, upper = map(float, percentiles(np.asarray(resampled), 0.025))
    return rho, lower, upper


def split_half(samples: Array, seed: int) -> tuple[float, float, float]:
    """Return the test–retest reliability of scores of heads: 1 where other prompts say the same.

    Prompts are split in two at random, the means of the halves are rank-correlated over heads, and
    Spearman and Brown's formula 2r / (1 + r) makes of it what all prompts together have. Mean over
    splits, and the central 95 % of them. ``samples`` are scores (prompt, layer, head).

    Source: Spearman (1910), Brown (1910).
    """
    flat = samples.reshape(len(samples), -1)
    flat = flat[:, ~np.isnan(flat).any(0)]
    if len(flat) < 2:
        return float("nan"), float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    reliabilities = []
    for _ in range(HALVES):
        halves = np.array_split(generator.permutation(len(flat)), 2)
        r = ranked(*(np.abs(flat[half].mean(0)) for half in halves))
        # At r = −1 the formula has no value; nothing below −1 is distinguished.
        reliabilities.append(max(2 * r / (1 + r), -1.0) if r > -1 else -1.0)
    lower, upper = map(float, percentiles(np.asarray(reliabilities), 0.025))
    return float(np.mean(reliabilities)), lower, upper


def ranked(first: Array, second: Array) -> float:
    """Return Spearman's rank correlation; NaN where one side does not vary.

    >>> import numpy as np
    >>> ranked(np.array([1.0, 2.0, 3.0]), np.array([1.0, 4.0, 9.0]))
    1.0
    """
    if len(first) < 2:
        return float("nan")
    return float(np.round((_ranks(first) * _ranks(second)).sum(), 12))


def matrix(methods: Mapping[str, Array], seed: int) -> Array:
    """Return ρ and its interval for every two methods (end, method, method).

    All methods have the same prompts, which are resampled together; NaN where a method gives every
    head the same.
    """
    samples = np.stack([scores.reshape(len(scores), -1) for scores in methods.values()])
    samples = samples[:, :, ~np.isnan(samples).any((0, 1))]
    ranks = _ranks(np.abs(samples.mean(1)))
    rho = np.round(ranks @ ranks.T, 12)
    count = samples.shape[1]
    if count < 2:
        return np.stack([rho, np.full_like(rho, np.nan), np.full_like(rho, np.nan)])
    weights = draws(count, RESAMPLES, seed) / count
    resampled = _ranks(np.abs(np.einsum("rp,mph->rmh", weights, samples)))
    pairs = resampled @ resampled.transpose(0, 2, 1)
    lower, upper = percentiles(pairs.reshape(len(pairs), -1), 0.025)
    return np.stack([rho, lower.reshape(rho.shape), upper.reshape(rho.shape)])


def _ranks(values: Array) -> Array:
    """Return ranks along the last axis, ties shared, centred and of length 1: products are ρ."""
    from scipy.stats import rankdata

    ranks = rankdata(values, axis=-1)
    ranks = ranks - ranks.mean(-1, keepdims=True)
    size = np.linalg.norm(ranks, axis=-1, keepdims=True)
    return np.asarray(np.where(size > 0, ranks / np.where(size > 0, size, 1.0), np.nan))


def most_different(first: Array, second: Array, count: int = 3) -> list[str]:
    """List the heads whose ranks by two scores (layer, head) lie furthest apart.

    >>> import numpy as np
    >>> most_different(np.array([[4.0, 3.0, 2.0, 1.0]]), np.array([[1.0, 3.0, 2.0, 4.0]]), 1)
    ['L0H0 (1st and 4th)']
    """
    present = ~(np.isnan(first) | np.isnan(second))
    names = labels(present)
    ranks = [
        np.argsort(np.argsort(-np.abs(scores[present]), kind="stable"))
        for scores in (first, second)
    ]
    order = np.argsort(-np.abs(ranks[0] - ranks[1]), kind="stable")[:count]
    return [
        f"{names[at]} ({ordinal(int(ranks[0][at]) + 1)} and {ordinal(int(ranks[1][at]) + 1)})"
        for at in order
    ]

"""Area under the ROC curve, with its interval over groups of samples."""

import numpy as np
from numpy.typing import ArrayLike

from headscope.analyses._stats.bootstrap import draws


def auroc(
    truth: ArrayLike, scores: ArrayLike, groups: ArrayLike, *, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """Return the area under the ROC curve and its bootstrap interval.

    Whole groups are resampled, so samples that belong together stay together. The chance that a
    true sample scores above a false one, ties counting half; NaN where all are of one
    kind or a score is missing.

    Parameters
    ----------
    truth
        Which samples are true.
    scores
        Scores, high for true.
    groups
        Number of the group of each sample.
    seed, level
        Seed and coverage of the bootstrap of 1000 resamples.

    Examples
    --------
    >>> auroc([True, False, True, False], [3.0, 1.0, 2.0, 2.5], [0, 0, 1, 1])[0]
    0.75
    """
    right = np.asarray(truth, dtype=bool)
    values = np.asarray(scores, dtype=float)
    if right.all() or not right.any() or np.isnan(values).any():
        return float("nan"), float("nan"), float("nan")
    above, below = values[right][:, None], values[~right][None, :]
    wins = (above > below) + 0.5 * (above == below)
    _, owner = np.unique(np.asarray(groups), return_inverse=True)
    count = int(owner.max()) + 1
    if count < 2:
        return float(wins.mean()), float("nan"), float("nan")
    weights = draws(count, 1000, seed)
    true, false = weights[:, owner[right]], weights[:, owner[~right]]
    pairs = true.sum(1) * false.sum(1)
    areas = np.einsum("rt,tf,rf->r", true, wins, false)[pairs > 0] / pairs[pairs > 0]
    tail = (1 - level) / 2
    lower, upper = np.quantile(areas, [tail, 1 - tail])
    return float(wins.mean()), float(lower), float(upper)

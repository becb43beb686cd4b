"""Area under the ROC curve, with its interval over groups of samples."""

import numpy as np
from numpy.typing import ArrayLike

from headscope.analyses._stats.bootstrap import TAIL, draws


def auroc(
    truth: ArrayLike, scores: ArrayLike, groups: ArrayLike, *, seed: int = 0
) -> tuple[float, float, float]:
    """Return the area under the ROC curve and its 95 % bootstrap interval over groups.

    The chance that a true sample scores above a false one, ties counting half; NaN where all are of
    one kind or a score is missing. Whole groups are resampled, so samples that belong together stay
    together; a group drawn twice meets itself, which is why the mean of the resamples is put where
    the area is.

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
    areas = np.clip(areas + wins.mean() - areas.mean(), 0, 1)
    lower, upper = np.quantile(areas, [TAIL, 1 - TAIL])
    return float(wins.mean()), float(lower), float(upper)

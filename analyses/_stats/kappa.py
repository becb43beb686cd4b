"""Agreement of two detectors beyond chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def kappa(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Return Cohen's κ of two yes–no judgements: 1 for agreement, 0 for what chance gives.

    NaN where both say the same of everything: chance alone then agrees.

    >>> import numpy as np
    >>> yes = np.array([True, True, False, False])
    >>> kappa(yes, yes), kappa(yes, ~yes), kappa(yes, np.array([True, False, True, False]))
    (1.0, -1.0, 0.0)
    """
    agree = float((one == other).mean())
    chance = float(one.mean() * other.mean() + (1 - one.mean()) * (1 - other.mean()))
    return float("nan") if chance == 1 else (agree - chance) / (1 - chance)

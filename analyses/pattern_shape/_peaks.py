"""Coupling of two kinds of peaks along a text, and what it is by chance."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headscope.analyses._stats.length_trend import Array, mean

Positions = NDArray[np.int64]


def highest(values: Array, share: float, skip: int) -> Positions:
    """Return the positions of the highest known values after the first few, at least one.

    >>> highest(np.array([9.0, 1.0, 5.0, 2.0, np.nan]), 0.4, 1).tolist()
    [2]
    """
    scores = np.where(np.isnan(values), -np.inf, values)
    scores[:skip] = -np.inf
    measured = int(np.isfinite(scores).sum())
    count = min(max(int(share * measured), 1), measured)
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def coupled(
    plans: Sequence[Positions],
    anchors: Sequence[Positions],
    ends: Sequence[int] | Positions,
    lags: int,
    skip: int,
) -> Array:
    """Return, per prompt and lag, the share of plans with an anchor that many tokens later.

    Plans whose partner would lie outside the text are left out; NaN where none is left.
    """
    none = np.zeros((1, len(plans)), dtype=np.int64)
    return np.asarray(_shifted_by(none, plans, anchors, ends, lags, skip)[0])


def chance(
    plans: Sequence[Positions],
    anchors: Sequence[Positions],
    ends: Sequence[int] | Positions,
    lags: int,
    skip: int,
    draws: int,
    seed: int,
) -> Array:
    """Return the mean coupling of all prompts, their anchors circularly shifted (draw, lag)."""
    generator = np.random.default_rng(seed)
    sizes = np.maximum(np.asarray(ends) - skip, 2)
    shifts = generator.integers(1, sizes, size=(draws, len(plans)))
    return mean(_shifted_by(shifts, plans, anchors, ends, lags, skip), 1)


def _shifted_by(
    shifts: Positions,
    plans: Sequence[Positions],
    anchors: Sequence[Positions],
    ends: Sequence[int] | Positions,
    lags: int,
    skip: int,
) -> Array:
    """Return the coupling under shifts of each prompt's anchors (draw, prompt, lag)."""
    shares = np.full((*shifts.shape, 2 * lags + 1), np.nan)
    for prompt, (plan_positions, anchor_positions, end) in enumerate(
        zip(plans, anchors, ends, strict=True)
    ):
        size = int(end) - skip
        anchored = np.zeros(size, dtype=bool)
        anchored[anchor_positions - skip] = True
        for column, lag in enumerate(range(-lags, lags + 1)):
            partner = plan_positions + lag - skip
            partner = partner[(partner >= 0) & (partner < size)]
            if len(partner):
                positions = (partner - shifts[:, prompt, None]) % size
                shares[:, prompt, column] = anchored[positions].mean(-1)
    return shares

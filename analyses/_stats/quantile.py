"""A quantile of numbers that come in pieces and are never held together."""

from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

HALF = 2**16

Pieces = Iterable[Float32[NDArray[np.float32], " value"]]


def quantile(pieces: Callable[[], Pieces], share: float) -> float:
    """Return a quantile of positive float32 numbers, as ``np.quantile`` does; NaN of none.

    Positive floats sort like their bits, so one pass over the pieces counts the upper halves, and a
    second the lower halves of those that the quantile lies between.

    >>> import numpy as np
    >>> quantile(lambda: [np.float32([3, 1]), np.float32([2])], 0.75)
    2.5
    """
    upper = np.zeros(HALF, dtype=np.int64)
    for piece in pieces():
        upper += np.bincount(_bits(piece) >> 16, minlength=HALF)
    below = np.concatenate(([0], upper.cumsum()))
    if not below[-1]:
        return float("nan")
    at = share * (below[-1] - 1)
    ranks = int(np.floor(at)), int(np.ceil(at))
    halves = [int(np.searchsorted(below, rank, side="right")) - 1 for rank in ranks]
    lower = {half: np.zeros(HALF, dtype=np.int64) for half in halves}
    for piece in pieces():
        bits = _bits(piece)
        for half, counts in lower.items():
            counts += np.bincount(bits[bits >> 16 == half] % HALF, minlength=HALF)
    low, high = (
        _float(half, int(np.searchsorted(lower[half].cumsum(), rank - below[half], side="right")))
        for rank, half in zip(ranks, halves, strict=True)
    )
    return low + (high - low) * float(at - ranks[0])


def _bits(piece: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.ascontiguousarray(piece).view(np.uint32).astype(np.int64)


def _float(upper: int, lower: int) -> float:
    return float(np.uint32(upper * HALF + lower).view(np.float32))

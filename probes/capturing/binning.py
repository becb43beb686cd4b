"""Bin neighbouring queries or keys of a statistic, for long texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from headscope.kernels import statistics
from headscope.kernels.errors import InvalidInput, NotApplicable

DIMS = ("query", "key")


def width_of(bins: int | None, longest: int) -> int:
    """Say how many tokens a bin holds; 1 where none are wanted or the text has no more tokens.

    Examples
    --------
    >>> width_of(100, 1000), width_of(100, 1001), width_of(100, 50), width_of(None, 1000)
    (10, 11, 1, 1)
    """
    return 1 if bins is None else -(-longest // bins)


def check(
    bins: int | None, stats: Sequence[str], keep: Sequence[str], *, crossed: bool = False
) -> None:
    """Refuse what has no meaning in bins."""
    if bins is None:
        return
    if bins < 1:
        raise InvalidInput(f"bins: {bins}; give 1 or more, or None for every token")
    if crossed:
        raise NotApplicable("bins: keys are tokens of another text in cross-attention; bins=None")
    if keep:
        raise InvalidInput(
            f"bins: {', '.join(keep)} keep every token; leave them out, or bins=None"
        )
    for name in stats:
        statistic = statistics.load(name)
        if statistic.merge == "top" or set(DIMS) <= set(statistic.dims):
            raise NotApplicable(f"bins: {name} has a meaning for single tokens only; leave it out")


def position_coords(coords: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Move coords of single tokens from the dim query to position, where queries are in bins."""
    if width == 1:
        return dict(coords)
    moved = {}
    for name, (dims, values) in coords.items():
        places = (dims,) if isinstance(dims, str) else tuple(dims)
        moved[name] = (tuple("position" if dim == "query" else dim for dim in places), values)
    return moved


def collect(
    name: str, values: npt.NDArray[Any], dims: Sequence[str], width: int
) -> npt.NDArray[Any]:
    """Bring queries and keys of one prompt into bins of ``width`` tokens.

    The mean of the tokens that have a number; the largest for a statistic that is a largest over
    queries. NaN where no token of a bin has one.

    Examples
    --------
    >>> collect("entropy", np.array([1.0, 3.0, np.nan, 4.0, 6.0]), ("query",), 2).tolist()
    [2.0, 4.0, 6.0]
    """
    largest = statistics.load(name).merge == "largest"
    for axis, dim in enumerate(dims):
        if dim not in DIMS or width == 1:
            continue
        starts = np.arange(0, values.shape[axis], width)
        if largest:
            values = np.fmax.reduceat(values, starts, axis=axis)
            continue
        real = ~np.isnan(values)
        counts = np.add.reduceat(real, starts, axis=axis, dtype=np.int64)
        total = np.add.reduceat(np.where(real, values, 0.0), starts, axis=axis, dtype=np.float64)
        values = np.where(counts > 0, total / np.maximum(counts, 1), np.nan)
    return values

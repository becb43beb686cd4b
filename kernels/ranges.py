"""Consecutive ranges of positions, as slices."""

from collections.abc import Iterator


def split_range(start: int, stop: int, step: int) -> Iterator[slice]:
    """Split a range into consecutive slices of at most ``step``.

    >>> list(split_range(0, 5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def length(positions: slice) -> int:
    """Count the positions of a slice."""
    return int(positions.stop) - int(positions.start)

"""Consecutive ranges of positions, as slices."""

from collections.abc import Iterator


def split_range(start: int, stop: int, step: int) -> Iterator[slice]:
    """Split a range into consecutive slices of at most ``step``."""
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def length(positions: slice) -> int:
    """Count the positions of a slice."""
    return int(positions.stop) - int(positions.start)

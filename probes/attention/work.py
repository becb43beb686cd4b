"""Work of forward passes, counted in tokens times layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Count = Callable[[int, bool], None]

_COUNTS: ContextVar[tuple[Count, ...]] = ContextVar("work", default=())


@contextmanager
def counting(count: Count) -> Iterator[None]:
    """Call ``count`` for every layer of attention that is computed inside.

    It is given the tokens, and whether a gradient goes through the layer. What is counted inside
    another count is counted by both.
    """
    token = _COUNTS.set((*_COUNTS.get(), count))
    try:
        yield
    finally:
        _COUNTS.reset(token)


@contextmanager
def uncounted() -> Iterator[None]:
    """Count nothing inside, where attention is called and computes nothing."""
    token = _COUNTS.set(())
    try:
        yield
    finally:
        _COUNTS.reset(token)


def add(tokens: int, *, backward: bool) -> None:
    """Count one layer of a pass over some tokens."""
    for count in _COUNTS.get():
        count(tokens, backward)


def weight(tokens: int, backward: bool) -> int:
    """Return tokens in passes' worth: a backward pass costs about as much as two forward ones."""
    return 3 * tokens if backward else tokens

"""Work of forward passes, counted in tokens times layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_COUNT: ContextVar[Callable[[int], None] | None] = ContextVar("work", default=None)


@contextmanager
def counting(count: Callable[[int], None]) -> Iterator[None]:
    """Call ``count`` with the tokens of every layer of attention that is computed inside.

    A layer that a gradient goes through counts three times: its backward pass costs about two
    forward ones.
    """
    token = _COUNT.set(count)
    try:
        yield
    finally:
        _COUNT.reset(token)


def add(tokens: int, *, backward: bool) -> None:
    """Count one layer of a pass over some tokens."""
    count = _COUNT.get()
    if count is not None:
        count(3 * tokens if backward else tokens)

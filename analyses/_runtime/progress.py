"""Progress of long work, measured in the passes of the model that it makes.

Work counts nothing itself: the layers of attention that are computed move the bar, in the unit in
which costs are stated. Where the passes of a part depend on what it measures, an analysis says
which share of its parts is done, and the total follows from what they took.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from headscope.probes.attention import work

Report = Callable[[float, float], None]

_SHARES: ContextVar[Callable[[float], None] | None] = ContextVar("shares", default=None)

# Reports of a whole; more would only cost time. What still runs is never reported as complete: work
# beyond what was expected moves the total on.
REPORTS, MOST = 1000, 0.95


@contextmanager
def reporting(report: Report | None, expected: float | None = None) -> Iterator[None]:
    """Report the work inside as (done, total), in `work.weight` of its layers.

    ``expected`` is the work that is expected. Without it the total is 0, which stands for unknown,
    until the end.

    Examples
    --------
    >>> with reporting(lambda done, total: print(f"{done:g} of {total:g}"), 4):
    ...     work.add(3, backward=False)
    0 of 4
    3 of 4
    4 of 4
    """
    if report is None:
        yield
        return
    done = reported = 0
    total = expected or 0.0

    def count(tokens: int, backward: bool) -> None:
        nonlocal done, reported, total
        done += work.weight(tokens, backward)
        if total:
            total = max(total, done / MOST)
        if done - reported >= total / REPORTS:
            reported = done
            report(done, total)

    def measure(share: float) -> None:
        nonlocal total
        if done:
            total = max(done / share, done / MOST)
            report(done, total)

    report(0, total)
    token = _SHARES.set(measure)
    try:
        with work.counting(count):
            yield
    finally:
        _SHARES.reset(token)
        total = max(total, done, 1)
        report(total, total)


def completed(share: float) -> None:
    """Report the share of the work that is done, 0 to 1; the total follows from it.

    Outside of `reporting` it does nothing.

    >>> with reporting(lambda done, total: print(f"{done:g} of {total:g}"), 4):
    ...     work.add(3, backward=False)
    ...     completed(0.25)
    0 of 4
    3 of 4
    3 of 12
    12 of 12
    """
    measure = _SHARES.get()
    if measure is not None and share > 0:
        measure(share)

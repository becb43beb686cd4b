"""Progress of long work, measured in the passes of the model that it makes.

Work counts nothing itself: the layers of attention that are computed move the bar, in the unit in
which costs are stated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from headscope.probes.attention import work

Report = Callable[[float, float], None]

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
    done = told = 0
    total = expected or 0.0

    def count(tokens: int, backward: bool) -> None:
        nonlocal done, told, total
        done += work.weight(tokens, backward)
        if total:
            total = max(total, done / MOST)
        if done - told >= total / REPORTS:
            told = done
            report(done, total)

    report(0, total)
    try:
        with work.counting(count):
            yield
    finally:
        total = max(total, done, 1)
        report(total, total)

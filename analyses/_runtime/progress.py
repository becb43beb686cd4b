"""Progress of long work, reported through a context instead of a parameter.

A caller that wants to know enters `reporting`; work that takes long enters `steps`. Steps inside a
step count as parts of it, so that nested loops move one bar, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Report = Callable[[float, float], None]


class Steps:
    """A counter of steps; call it after each."""

    def __init__(self, total: int, outer: Steps | None, report: Report | None) -> None:
        self.total, self.outer, self.report = max(total, 1), outer, report
        self.done = 0

    def __call__(self, count: int = 1) -> None:
        """Count steps as done."""
        self.done = min(self.done + count, self.total)
        self._tell(0.0)

    def _tell(self, part: float) -> None:
        value = min(self.done + part, self.total)
        if self.outer is not None:
            self.outer._tell(value / self.total)
        elif self.report is not None:
            self.report(value, self.total)


_REPORT: ContextVar[Report | None] = ContextVar("report", default=None)
_STEPS: ContextVar[Steps | None] = ContextVar("steps", default=None)


@contextmanager
def reporting(report: Report | None) -> Iterator[None]:
    """Report the steps of the work inside as (done, total) of the outermost ones."""
    report_token, steps_token = _REPORT.set(report), _STEPS.set(None)
    try:
        yield
    finally:
        _STEPS.reset(steps_token)
        _REPORT.reset(report_token)


@contextmanager
def steps(total: int) -> Iterator[Steps]:
    """Count ``total`` steps of equal cost.

    Examples
    --------
    >>> with reporting(lambda done, total: print(f"{done:g} of {total}")), steps(2) as step:
    ...     with steps(2) as part:
    ...         part()
    ...     step()
    0.5 of 2
    1 of 2
    """
    counter = Steps(total, _STEPS.get(), _REPORT.get())
    token = _STEPS.set(counter)
    try:
        yield counter
    finally:
        _STEPS.reset(token)

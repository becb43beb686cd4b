"""Progress of long work, on standard error: bars on a terminal, else a line every ten seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Thread

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
)
from rich.text import Text

from headscope.app.cli.console import print_text

INTERVAL = 10.0
"""Seconds between two lines, where there is no terminal."""
# What still runs is never shown as complete.
MOST = 0.99
# Seconds, and share of the work, after which the rate so far says what is left; until then what was
# stated says it.
LEAST_TIME, LEAST_SHARE = 3.0, 0.05

Report = Callable[[str, float, float], None]


class Phase:
    """A part of the work: ``done`` of a ``total``, 0 where that is not known.

    ``stated`` are its estimated seconds.
    """

    def __init__(self, name: str, now: float, stated: float | None = None) -> None:
        self.name, self.began, self.stated = name, now, stated
        self.done, self.total = 0.0, 0.0
        self.first = self.last = (now, 0.0)

    @property
    def complete(self) -> bool:
        """Whether all of it is done."""
        return 0 < self.total <= self.done

    def count(self, done: float, total: float, now: float) -> None:
        """Set what is done; where it is less than before, the phase restarts."""
        if done < self.done:
            self.began = now
        self.last = now, done / total if total else 0.0
        if done < self.done or (not self.done and total != self.total):
            self.first = self.last
        self.done, self.total = done, total

    def left(self, now: float) -> float | None:
        """Return the seconds that are left, at the rate so far or as stated; None if unknown."""
        (start, before), (latest, share) = self.first, self.last
        if latest - start >= LEAST_TIME and share - before >= LEAST_SHARE:
            remaining = (latest - start) * (1 - share) / (share - before)
        elif self.stated is not None:
            remaining = self.stated * (1 - share)
        else:
            return None
        return max(remaining - (now - latest), 0.0)

    def describe(self, now: float) -> str:
        """Describe the share that is done, the time that took, and what is left."""
        share, left = self.last[1], self.left(now)
        done = f"{min(share, MOST):.0%} done, " if share else ""
        text = f"{self.name}: {done}{_clock(now - self.began)} elapsed"
        return text if left is None else f"{text}, about {_clock(left)} left"


class Phases:
    """The phases that run now, the outermost first."""

    def __init__(self, stated: Mapping[str, float] | None = None) -> None:
        self.began = time.monotonic()
        self.stated: Mapping[str, float] = {} if stated is None else stated
        self.running: list[Phase] = []

    def count(self, name: str, done: float, total: float) -> list[Phase]:
        """Update a phase, and return the phases that ended with the update.

        A phase that reports ends those inside it; a new one is inside those that are not complete,
        and ends when it is.
        """
        now = time.monotonic()
        names, running = [phase.name for phase in self.running], list(self.running)
        if name in names:
            running = running[: names.index(name) + 1]
        else:
            stated = self.stated.get(name.rpartition(" ")[2])
            running = [phase for phase in running if not phase.complete] + [
                Phase(name, now, stated)
            ]
        running[-1].count(done, total, now)
        phases = [*self.running, running[-1]]
        if len(running) > 1 and running[-1].complete:
            running.pop()
        self.running = running
        return [phase for phase in phases if phase not in running]

    def describe(self) -> str:
        """Describe all of them in one line."""
        now = time.monotonic()
        parts = [phase.describe(now) for phase in self.running]
        return "; ".join(parts) or f"starting: {_clock(now - self.began)} elapsed"


def _clock(seconds: float) -> str:
    """Write a time as minutes and seconds.

    >>> _clock(75.4), _clock(3700)
    ('1:15', '61:40')
    """
    minutes, remainder = divmod(round(seconds), 60)
    return f"{minutes}:{remainder:02d}"


@contextmanager
def bar(console: Console, stated: Mapping[str, float] | None = None) -> Iterator[Report]:
    """Show the phases that are reported as (name, done, total), from the first report on.

    ``stated`` are the estimated seconds of the phases, by the last word of their names.
    """
    phases = Phases(stated)
    with (_bars if console.is_terminal else _lines)(console, phases) as report:
        yield report


@contextmanager
def _lines(console: Console, phases: Phases) -> Iterator[Report]:
    """Print one line every `INTERVAL` seconds, and nothing between."""
    over = Event()

    def print_progress() -> None:
        while not over.wait(INTERVAL):
            print_text(phases.describe(), console)

    printer = Thread(target=print_progress, daemon=True)
    printer.start()

    def report(name: str, done: float, total: float) -> None:
        phases.count(name, done, total)

    try:
        yield report
    finally:
        over.set()
        printer.join()


class _Left(ProgressColumn):
    """The time that is left of a phase."""

    def __init__(self, phases: Phases) -> None:
        super().__init__()
        self.phases = phases

    def render(self, task: Task) -> Text:
        """Write the time that is left, or that a phase took."""
        now, running = time.monotonic(), {phase.name: phase for phase in self.phases.running}
        if task.description not in running:
            return Text(_clock(task.finished_time or 0), "progress.elapsed")
        left = running[task.description].left(now)
        return Text("-:--" if left is None else f"{_clock(left)} left", "progress.remaining")


@contextmanager
def _bars(console: Console, phases: Phases) -> Iterator[Report]:
    """Draw a bar for every phase."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        _Left(phases),
    )
    progress = Progress(*columns, console=console)
    tasks: dict[str, TaskID] = {}

    def complete(ended: list[Phase]) -> None:
        for phase in ended:
            if phase.complete:
                progress.update(tasks[phase.name], completed=phase.total)

    def report(name: str, done: float, total: float) -> None:
        # Not before: input that is refused at once prints its one line and nothing else.
        progress.start()
        if name not in tasks:
            tasks[name] = progress.add_task(name, total=None)
        elif progress.tasks[tasks[name]].completed > done:
            progress.reset(tasks[name])
        shown = min(done, MOST * total) if total else done
        progress.update(tasks[name], completed=shown, total=total or None)
        complete(phases.count(name, done, total))

    try:
        yield report
    finally:
        complete(phases.running)
        if tasks:
            progress.stop()

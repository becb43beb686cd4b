"""How far long work is, on standard error: bars on a terminal, else a line every ten seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from headscope.app.cli.console import say

INTERVAL = 10.0
"""Seconds between two lines, where there is no terminal."""
# What still runs is never shown as complete: an analysis may do more than the steps that it counts.
MOST = 0.99

Report = Callable[[str, float, float], None]


class Phase:
    """A part of the work that counts its steps, ``done`` of ``total``, of about equal cost."""

    def __init__(self, name: str, now: float) -> None:
        self.name, self.began = name, now
        self.done, self.total = 0.0, 0.0
        self.first = self.last = (now, 0.0)

    @property
    def complete(self) -> bool:
        """Whether all steps are counted."""
        return self.done >= self.total

    def count(self, done: float, total: float, now: float) -> None:
        """Take what is done; where it is less than before, the phase begins again."""
        total = max(total, 1)
        if done < self.done:
            self.began = now
        self.last = now, done / total
        if done < self.done or total != self.total:
            self.first = self.last
        self.done, self.total = done, total

    def describe(self, now: float) -> str:
        """Say the share that is done, the time that took, and what is left at its rate."""
        text = f"{self.name}: {{}}{_clock(now - self.began)} elapsed"
        (start, before), (latest, share) = self.first, self.last
        if self.complete:
            return text.format("all steps counted, ")
        if share <= before:
            return text.format(f"{share:.0%} done, " if share else "")
        left = (latest - start) * (1 - share) / (share - before) - (now - latest)
        return f"{text.format(f'{share:.0%} done, ')}, about {_clock(max(left, 0))} left"


class Phases:
    """The phases that run now, the outermost first."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.running: list[Phase] = []

    def count(self, name: str, done: float, total: float) -> list[Phase]:
        """Take what a phase reports, and return the phases that have ended with it.

        A phase that reports ends those inside it; a new one is inside those that are not complete,
        and ends when it is.
        """
        now = time.monotonic()
        names, kept = [phase.name for phase in self.running], list(self.running)
        if name in names:
            kept = kept[: names.index(name) + 1]
        else:
            kept = [phase for phase in kept if not phase.complete] + [Phase(name, now)]
        kept[-1].count(done, total, now)
        whole = [*self.running, kept[-1]]
        if len(kept) > 1 and kept[-1].complete:
            kept.pop()
        self.running = kept
        return [phase for phase in whole if phase not in kept]

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
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


@contextmanager
def bar(console: Console) -> Iterator[Report]:
    """Show the phases that are reported as (name, done, total), from the first report on."""
    with _bars(console) if console.is_terminal else _lines(console) as report:
        yield report


@contextmanager
def _lines(console: Console) -> Iterator[Report]:
    """Print one line every `INTERVAL` seconds, and nothing between."""
    phases, over = Phases(), Event()

    def tell() -> None:
        while not over.wait(INTERVAL):
            say(phases.describe(), console)

    teller = Thread(target=tell, daemon=True)
    teller.start()

    def report(name: str, done: float, total: float) -> None:
        phases.count(name, done, total)

    try:
        yield report
    finally:
        over.set()
        teller.join()


@contextmanager
def _bars(console: Console) -> Iterator[Report]:
    """Draw a bar for every phase."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    progress, phases = Progress(*columns, console=console), Phases()
    tasks: dict[str, TaskID] = {}

    def complete(ended: list[Phase]) -> None:
        for phase in ended:
            if phase.complete:
                progress.update(tasks[phase.name], completed=phase.total)

    def report(name: str, done: float, total: float) -> None:
        # Not before: input that is refused at once prints its one line and nothing else.
        progress.start()
        if name not in tasks:
            tasks[name] = progress.add_task(name)
        elif progress.tasks[tasks[name]].completed > done:
            progress.reset(tasks[name])
        progress.update(tasks[name], completed=min(done, MOST * total), total=total)
        complete(phases.count(name, done, total))

    try:
        yield report
    finally:
        complete(phases.running)
        if tasks:
            progress.stop()

"""Jobs: long work outside any session, one at a time in this process, the others in a queue.

A job continues when its page reruns, is left or closed; its browser finds it again. Work is
cancelled where it reports progress and at every attention layer, never while it writes.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from threading import Condition, Event, Thread
from typing import Any

from headscope.app.cli.progress import Phases
from headscope.kernels.errors import HeadscopeError, ResourceLimit
from headscope.probes.attention import work

Report = Callable[[str, float, float], None]
Opens = tuple[str, dict[str, Any], str]
"""A screen, what its link carries, and the words of the link."""

# Unfinished jobs of one visitor, and jobs that are remembered after their end.
MOST, KEPT = 8, 32
WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"


class Cancelled(BaseException):
    """The user has cancelled the job; `except Exception` does not catch it."""


class Job:
    """Work that a visitor has asked for.

    Parameters
    ----------
    kind, title
        What it is (``capture``, ``analyses``, ...) and its name for its owner, plain text.
    owner
        The visitor whose job it is; others see that there is one, and nothing of it.
    function
        The work, given a report (phase, done, total); what it returns is ``result``.
    remains
        Sentence on what remains when it is cancelled or fails.
    message, opens
        Message when it is done, and the screen that shows its result.
    about
        Subject of the job, by which a screen finds it again; two unfinished jobs of one owner on
        the same subject are one.
    """

    def __init__(
        self, kind: str, title: str, owner: str, function: Callable[[Report], Any], *,
        remains: str = "Nothing was kept.", message: str = "", opens: Opens | None = None,
        about: Any = None,
    ) -> None:  # fmt: skip
        self.kind, self.title, self.owner = kind, title, owner
        self.remains, self.message, self.opens = remains, message, opens
        self.about = (kind, about or title)
        self.state = WAITING
        self.result: Any = None
        self.error = self.trace = ""
        self.dismissed = False
        self.phases = Phases()
        self._function: Callable[[Report], Any] | None = function
        self._stop = Event()

    @property
    def ended(self) -> bool:
        """Whether it is neither queued nor running."""
        return self.state not in (WAITING, RUNNING)

    @property
    def stopping(self) -> bool:
        """Whether it was cancelled and runs to the next point where it can stop."""
        return self.state == RUNNING and self._stop.is_set()

    @property
    def share(self) -> float:
        """Share of the phase that is done, 0 where that is not known."""
        for phase in self.phases.running[-1:]:
            return min(phase.done / phase.total, 1.0) if phase.total else 0.0
        return 0.0

    def report(self, phase: str, done: float, total: float) -> None:
        """Update the progress, and stop the work if it was cancelled."""
        self.check()
        self.phases.count(phase, done, total)

    def check(self, *_: Any) -> None:
        """Stop the work if it was cancelled."""
        if self._stop.is_set():
            raise Cancelled

    def run(self) -> None:
        """Run the work, and store its result or the reason why there is none."""
        function, self.phases = self._function, Phases()
        assert function is not None
        try:
            with work.counting(self.check):
                self.check()
                self.result = function(self.report)
            self.state = DONE
        except Cancelled:
            self.state = CANCELLED
        except BaseException as error:  # whatever it is, the next job has to run
            # Its text alone: the frames of a traceback hold models and captures.
            from headscope.app.outcomes import reason

            self.error = reason(error)
            if not isinstance(error, HeadscopeError):
                self.trace = traceback.format_exc()
            self.state = FAILED
        finally:
            self._function = None

    def stop(self) -> None:
        """Cancel the work; a queued job never starts."""
        self._stop.set()
        if self.state == WAITING:
            self.state, self._function = CANCELLED, None


class Queue:
    """The jobs of a process: one runs, the others wait in order."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self._changed = Condition()
        self._worker: Thread | None = None

    def submit(self, job: Job) -> Job:
        """Queue a job; if the same visitor has already queued it, return that one."""
        with self._changed:
            unfinished = [queued for queued in self.of(job.owner) if not queued.ended]
            for queued in unfinished:
                if queued.about == job.about and not queued.stopping:
                    return queued
            if len(unfinished) >= MOST:
                raise ResourceLimit(
                    f"jobs: {len(unfinished)} of yours run or wait; cancel one, or wait for its end"
                )
            ended = [queued for queued in self.jobs if queued.ended]
            for queued in ended[: max(0, len(ended) - KEPT)]:
                self.jobs.remove(queued)
            self.jobs.append(job)
            if self._worker is None:
                self._worker = Thread(target=self._work, name="headscope-jobs", daemon=True)
                self._worker.start()
        return job

    def cancel(self, job: Job) -> None:
        """Cancel a job."""
        with self._changed:
            job.stop()
            self._changed.notify_all()

    def of(self, owner: str) -> list[Job]:
        """List the jobs of a visitor, the oldest first."""
        return [job for job in self.jobs if job.owner == owner]

    def find(self, owner: str, about: Any) -> Job | None:
        """Return the last job of a visitor about something."""
        return next((job for job in reversed(self.of(owner)) if job.about == about), None)

    def last(self, owner: str, kind: str, path: str) -> Job | None:
        """Return the last job of a kind that a visitor has asked for about a run."""
        jobs = [job for job in self.of(owner) if job.kind == kind and job.about[1][0] == path]
        return jobs[-1] if jobs else None

    @property
    def unfinished(self) -> list[Job]:
        """The job that runs, and those that wait."""
        return [job for job in self.jobs if not job.ended]

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no job runs or waits; return whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.unfinished, timeout)

    def _work(self) -> None:
        while True:
            with self._changed:
                job = next((queued for queued in self.jobs if queued.state == WAITING), None)
                if job is None:
                    self._worker = None
                    return
                job.state = RUNNING
            job.run()
            with self._changed:
                self._changed.notify_all()


QUEUE = Queue()

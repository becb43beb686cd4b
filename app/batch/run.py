"""Run: a job from its first cell to its index, on one engine or another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headscope.app.batch import index, local_engine
from headscope.app.batch.job import Group, Job
from headscope.app.batch.state import (
    INDEX,
    LOG,
    MANIFEST,
    PLOTLY,
    REPORTS,
    Folder,
    Record,
    make,
    pretty,
)  # fmt: skip
from headscope.app.batch.worker import Failure, Outcome, Progress
from headscope.app.pipeline import skipped
from headscope.app.report import build
from headscope.kernels.errors import InvalidInput
from headscope.probes.storage import dataset_file
from headscope.probes.storage.run_folder import REPORT

Engine = Callable[[Job, local_engine.Todo, Progress | None], Iterator[tuple[Group, str, Outcome]]]
CELLS, STEP = "cells", "this cell"


@dataclass(frozen=True)
class Summary:
    """What a batch has done.

    Attributes
    ----------
    cells
        The record of every cell, in order.
    kept
        Cells that were done before it began.
    index
        The page to open.
    """

    cells: tuple[Record, ...]
    kept: int
    index: Path

    @property
    def failed(self) -> tuple[Record, ...]:
        """The cells without a result."""
        return tuple(one for one in self.cells if one["state"] == "failed")


def run(
    job: Job,
    out: Path,
    *,
    engine: Engine = local_engine.run,
    overwrite: bool = False,
    retry: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Run a job into a folder, or what an earlier run of it has left.

    Parameters
    ----------
    job
        The job.
    out
        Its folder.
    engine
        What runs the cells: `local_engine.run`, or `ray_engine.run` for Ray.
    overwrite
        Replace what another job has left in the folder.
    retry
        Run the cells again that failed.
    progress
        Called with (step, done, total).

    Returns
    -------
    The record of every cell.

    Raises
    ------
    HeadscopeError
        When the folder or the disk refuses, or a model is not the one of the cells that are done.
    """
    folder = Folder(out, job)
    with folder.open(overwrite=overwrite):
        todo, kept, revisions = _left(folder, retry)
        count = sum(len(names) for _, names in todo)
        folder.note(event="begun", left=count, kept=kept)
        if progress is not None and count:
            progress(CELLS, 0, count)
        step = None if progress is None else (lambda _, done, total: progress(STEP, done, total))
        for done, (group, name, outcome) in enumerate(engine(job, todo, step), 1):
            _keep(folder, group, name, outcome, revisions)
            if progress is not None:
                progress(CELLS, done, count)
        records = finish(folder)
        folder.note(event="finished", cells=len(records))
    return Summary(records, kept, out / INDEX)


def _left(folder: Folder, retry: bool) -> tuple[list[tuple[Group, list[str]]], int, dict[str, str]]:
    """List what has to be run, count what need not, and say which models that was done with."""
    todo, kept = [], 0
    revisions: dict[str, str] = {}
    for group in folder.job.groups:
        names = []
        for name in group.analyses:
            record = folder.record(group, name)
            if record is not None and retry and record["state"] == "failed":
                folder.forget(group, name)
                record = None
            if record is None:
                names.append(name)
            else:
                kept += 1
                if record.get("revision"):
                    revisions[group.subject.label] = record["revision"]
        if names:
            todo.append((group, names))
    return todo, kept, revisions


def _keep(
    folder: Folder, group: Group, name: str, outcome: Outcome, revisions: dict[str, str]
) -> None:
    if isinstance(outcome, Failure):
        folder.fail(group, name, outcome)
        state = "failed"
    else:
        label, now = group.subject.label, outcome.attrs.get("revision", "")
        if revisions.setdefault(label, now) != now:
            raise InvalidInput(
                f"model: {label} is at revision {now}, but cells in {folder.path} were run at "
                f"{revisions[label]}; choose another folder, or replace it (--overwrite)"
            )
        folder.save(group, name, outcome)
        state = "done"
    folder.note(event=state, place=group.place, analysis=name)


def finish(folder: Folder) -> tuple[Record, ...]:
    """Write the reports that are missing, the index and the manifest, from what is on disk."""
    records: list[Record] = []
    for group in folder.job.groups:
        found = {name: folder.record(group, name) for name in group.analyses}
        known = {name: one for name, one in found.items() if one is not None}
        records += known.values()
        _report(folder, group, known)
    dataset_file.write_text(folder.path / INDEX, index.html(folder, records))
    manifest: dict[str, Any] = {
        **folder.job.identity(),
        "not_reproducible": [LOG],
        "cells": records,
    }
    dataset_file.write_text(folder.path / MANIFEST, pretty(manifest))
    return tuple(records)


def _report(folder: Folder, group: Group, records: dict[str, Record]) -> None:
    """Write the report of a group whose cells are all there and of which one at least is done."""
    place = folder.report(group)
    done = [name for name, one in records.items() if one["state"] == "done"]
    if not done or all((place / name).is_file() for name in REPORT):
        return
    results = {
        name: folder.result(group, name) if name in done else skipped(name, records[name]["reason"])
        for name in group.analyses
    }
    attrs = results[done[0]].attrs
    names = ("architecture", "revision", "attention", "n_prompts", "prompts_sha256", "headscope")
    manifest = {
        "model": group.subject.label,
        "task": group.questions.label,
        "seed": group.seed,
        **{name: attrs.get(name, "") for name in names},
    }
    make(place)
    library = folder.path / REPORTS / PLOTLY
    if not library.is_file():
        from plotly.offline import get_plotlyjs

        dataset_file.write_text(library, get_plotlyjs())
    build.write_files(place, manifest, results, plotly_address=f"../../../{PLOTLY}")

"""A job from its first cell to its index, on one engine or another."""

from collections.abc import Callable
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
    BatchState,
    Record,
    pretty,
)
from headscope.app.batch.worker import Failure, Outcome
from headscope.app.outcomes import skipped
from headscope.app.pipeline import Progress
from headscope.app.report import build
from headscope.kernels.errors import InvalidInput
from headscope.probes.storage.dataset_file import make_folder, write_text
from headscope.probes.storage.run_folder import REPORT

Engine = Callable[[Job, local_engine.Todo, Progress | None], local_engine.Outcomes]
CELLS, STEP = "cells", "this cell"


@dataclass(frozen=True)
class Summary:
    """The record of every cell, how many were done before, and the page to open."""

    cells: tuple[Record, ...]
    kept: int
    index: Path

    @property
    def failed(self) -> tuple[Record, ...]:
        """The cells without a result."""
        return tuple(record for record in self.cells if record["state"] == "failed")


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

    ``overwrite`` replaces what another job has left there; ``retry`` runs failed cells again.
    """
    batch = BatchState(out, job)
    with batch.open(overwrite=overwrite):
        todo, kept, revisions = _unfinished(batch, retry)
        count = sum(len(names) for _, names in todo)
        batch.note(event="begun", left=count, kept=kept)
        if progress is not None and count:
            progress(CELLS, 0, count)
        step = None if progress is None else (lambda _, done, total: progress(STEP, done, total))
        for number, (group, name, outcome) in enumerate(engine(job, todo, step), 1):
            _keep(batch, group, name, outcome, revisions)
            if progress is not None:
                progress(CELLS, number, count)
        records = finish(batch)
        batch.note(event="finished", cells=len(records))
    return Summary(records, kept, out / INDEX)


def _unfinished(
    batch: BatchState, retry: bool
) -> tuple[list[tuple[Group, list[str]]], int, dict[str, str]]:
    """List what has to be run, count what need not, and say which models that was done with."""
    todo, kept = [], 0
    revisions: dict[str, str] = {}
    for group in batch.job.groups:
        names = []
        for name in group.analyses:
            record = batch.record(group, name)
            if record is not None and retry and record["state"] == "failed":
                batch.forget(group, name)
                record = None
            if record is None:
                names.append(name)
                continue
            kept += 1
            if record.get("revision"):
                revisions[group.model.name] = record["revision"]
        if names:
            todo.append((group, names))
    return todo, kept, revisions


def _keep(
    batch: BatchState, group: Group, name: str, outcome: Outcome, revisions: dict[str, str]
) -> None:
    """Store the outcome of a cell; refuse a model that has changed since the others."""
    if isinstance(outcome, Failure):
        batch.fail(group, name, outcome)
    else:
        model, now = group.model.name, outcome.attrs.get("revision", "")
        if revisions.setdefault(model, now) != now:
            raise InvalidInput(
                f"model: {model} is at revision {now}, but cells in {batch.path} were run at "
                f"{revisions[model]}; choose another folder, or replace it (--overwrite)"
            )
        batch.save(group, name, outcome)
    state = "failed" if isinstance(outcome, Failure) else "done"
    batch.note(event=state, place=group.subfolder, analysis=name)


def finish(batch: BatchState) -> tuple[Record, ...]:
    """Write the reports that are missing, the index and the manifest, from what is on disk."""
    records: list[Record] = []
    for group in batch.job.groups:
        by_name = {name: batch.record(group, name) for name in group.analyses}
        complete = {name: record for name, record in by_name.items() if record is not None}
        records += complete.values()
        _report(batch, group, complete)
    write_text(batch.path / INDEX, index.html(batch, records))
    manifest: dict[str, Any] = {**batch.job.identity(), "not_reproducible": [LOG], "cells": records}
    write_text(batch.path / MANIFEST, pretty(manifest))
    return tuple(records)


def _report(batch: BatchState, group: Group, records: dict[str, Record]) -> None:
    """Write the report of a group whose cells are all there and of which one at least is done."""
    folder = batch.report(group)
    done = [name for name, record in records.items() if record["state"] == "done"]
    if not done or all((folder / name).is_file() for name in REPORT):
        return
    results = {
        name: batch.result(group, name) if name in done else skipped(name, records[name]["reason"])
        for name in group.analyses
    }
    attrs = results[done[0]].attrs
    names = (
        "architecture", "revision", "attention", "register", "redrawn", "n_prompts",
        "prompts_sha256", "headscope",
    )  # fmt: skip
    manifest = {
        "model": group.model.name,
        "task": group.task.label,
        "seed": group.seed,
        **{name: attrs.get(name, "") for name in names},
    }
    make_folder(folder)
    library = batch.path / REPORTS / PLOTLY
    if not library.is_file():
        from plotly.offline import get_plotlyjs

        write_text(library, get_plotlyjs())
    build.write_files(
        folder, manifest, results, group.subfolder, plotly_address=f"../../../{PLOTLY}"
    )

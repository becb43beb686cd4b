"""Command: ``headscope batch``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from headscope.app.cli.progress import bar
from headscope.kernels.errors import InvalidInput

PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
ENGINES = ("local", "ray")
TOLD = 10


def batch(
    job: Annotated[Path, typer.Argument(metavar="JOB.yaml", help="what to run: docs/batch.md")],
    folder: Annotated[
        Path | None, typer.Option("--out", help="folder of the results; default: runs/JOB")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the cells and what they need, and stop")
    ] = False,
    engine: Annotated[
        str, typer.Option("--engine", help="local, or ray (needs headscope[ray])")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="cells at once with ray; default: cores")
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", help="a Ray cluster that runs already")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace what another job left in the folder")
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry-failed", help="run the cells again that failed")
    ] = False,
) -> None:
    """Run analyses over many models, tasks and seeds into one table; run again, it goes on."""
    from headscope.app.batch.run import run
    from headscope.app.batch.schema import read_job
    from headscope.app.batch.state import Folder
    from headscope.app.batch.yaml_errors import Faulty

    out, err = Console(), Console(stderr=True)
    if engine not in ENGINES:
        raise InvalidInput(f"--engine: no {engine!r}; choose {' or '.join(ENGINES)}")
    if engine == "local" and (workers is not None or address is not None):
        raise InvalidInput(
            "--workers, --address: only of --engine ray; the local engine is one process"
        )
    try:
        asked = read_job(job)
    except Faulty as faulty:
        for line in faulty.lines:
            err.print(f"error: {line}", **PLAIN)
        raise typer.Exit(2) from None
    place = folder or Path("runs") / re.sub(r"\.ya?ml$", "", job.name)
    target = Folder(place, asked)
    target.check(overwrite=overwrite)
    if dry_run:
        from headscope.app.batch import preview

        for line in preview.lines(asked):
            out.print(line, **PLAIN)
        known = 0 if overwrite else target.known
        before = f"; {known} of them are there already" if known else ""
        out.print(f"nothing was written; the results would go to {place}{before}", **PLAIN)
        return
    options: dict[str, Any] = {"overwrite": overwrite, "retry": retry}
    with bar(err) as progress:
        if engine == "ray":
            from headscope.app.batch import ray_engine

            with ray_engine.started(asked, workers, address) as running:
                done = run(asked, place, engine=running, progress=progress, **options)
        else:
            done = run(asked, place, progress=progress, **options)
    for one in done.failed[:TOLD]:
        where = f"{one['model']} · {one['task']} · seed {one['seed']}"
        err.print(f"failed: {one['analysis']}, {where}: {one['reason']}", **PLAIN)
    if len(done.failed) > TOLD:
        err.print(f"and {len(done.failed) - TOLD} more: see the index", **PLAIN)
    there = len(done.cells) - len(done.failed)
    kept = f", {done.kept} of them known before" if done.kept else ""
    out.print(f"{there} of {len(done.cells)} cells have a result{kept}: {done.index}", **PLAIN)
    if done.failed:
        raise typer.Exit(1)

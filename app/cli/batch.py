"""``headscope batch``: one job over many models, tasks, analyses and seeds."""

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from headscope.app.cli.console import err, print_text
from headscope.app.cli.progress import bar
from headscope.kernels.errors import InvalidInput

ENGINES = ("local", "ray")
# Failed cells that are printed.
SHOWN = 10


def batch(
    job: Annotated[Path, typer.Argument(metavar="JOB.yaml", help="what to run: docs/batch.md")],
    folder: Annotated[
        Path | None, typer.Option("--out", help="folder of the results; default: runs/JOB")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the cells and what they need, and stop")
    ] = False,
    engine: Annotated[str, typer.Option(help="local, or ray (needs headscope[ray])")] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="cells at once with ray; default: cores")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="HOST:PORT of a Ray cluster that runs already")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace what another job left in the folder")
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry-failed", help="run the cells again that failed")
    ] = False,
) -> None:
    """Run analyses over many models, tasks and seeds into one table; run again to resume."""
    from headscope.app.batch import local_engine, preview, ray_engine
    from headscope.app.batch.job_file import read_job
    from headscope.app.batch.run import run
    from headscope.app.batch.state import BatchState
    from headscope.app.batch.yaml_errors import InvalidFile

    if engine not in ENGINES:
        raise InvalidInput(f"--engine: no {engine!r}; choose {' or '.join(ENGINES)}")
    if engine == "local" and (workers is not None or address is not None):
        raise InvalidInput(
            "--workers, --address: only of --engine ray; the local engine is one process"
        )
    try:
        content = read_job(job)
    except InvalidFile as error:
        for line in error.lines:
            print_text(f"error: {line}", err)
        raise typer.Exit(2) from None
    out = folder or Path("runs") / re.sub(r"\.ya?ml$", "", job.name)
    batch = BatchState(out, content)
    batch.check(overwrite=overwrite)
    if dry_run:
        for line in preview.lines(content):
            print_text(line)
        done = 0 if overwrite else batch.known
        before = f"; {done} of them are there already" if done else ""
        print_text(f"nothing was written; the results would go to {out}{before}")
        return
    local = engine == "local"
    with (
        bar(err) as progress,
        nullcontext(local_engine.run)
        if local
        else ray_engine.started(content, workers, address) as running,
    ):
        summary = run(
            content, out, engine=running, overwrite=overwrite, retry=retry, progress=progress
        )
    for record in summary.failed[:SHOWN]:
        where = f"{record['model']} · {record['task']} · seed {record['seed']}"
        print_text(f"failed: {record['analysis']}, {where}: {record['reason']}", err)
    if len(summary.failed) > SHOWN:
        print_text(f"and {len(summary.failed) - SHOWN} more: see the index", err)
    count = len(summary.cells) - len(summary.failed)
    known_note = f", {summary.kept} of them known before" if summary.kept else ""
    print_text(f"{count} of {len(summary.cells)} cells have a result{known_note}: {summary.index}")
    if summary.failed:
        raise typer.Exit(1)

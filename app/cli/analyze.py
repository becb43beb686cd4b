"""``headscope analyze``: analyses on a captured run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from headscope import analyses
from headscope.app.cli.console import err, say
from headscope.app.cli.progress import bar
from headscope.kernels.errors import HeadscopeError


def analyze(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run")],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="analyses; default: all missing")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME.OPTION=VALUE", help="an option of an analysis"),
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="task, or JSONL file, instead of the analyses' own")
    ] = None,
    number: Annotated[
        int | None, typer.Option("--number", help="prompts drawn from the analyses' tasks")
    ] = None,
) -> None:
    """Run analyses on a captured run and keep their results in it."""
    from headscope.app.pipeline import analyze_run, done, open_run, parse_settings

    options = parse_settings(settings or [])
    opened = open_run(run)
    finished = done(opened)
    wanted = names or [name for name in analyses.names() if name not in finished or name in options]
    with bar(err) as progress:
        outcome = analyze_run(
            opened, wanted, task=task, number=number, options=options, progress=progress
        )
    print_skipped(outcome)
    if any(isinstance(outcome[name], HeadscopeError) for name in {*(names or ()), *options}):
        raise typer.Exit(2)
    say(f"next: headscope report {run}")


def print_skipped(outcome: Mapping[str, object]) -> None:
    """Say on standard error which analyses did not run, and why."""
    for name, result in outcome.items():
        if isinstance(result, HeadscopeError):
            say(f"not run: {name}: {result}", err)

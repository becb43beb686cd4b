"""``headscope timeline``: an analysis over the checkpoints of a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from headscope.app.cli.console import err, print_text
from headscope.app.cli.progress import bar
from headscope.kernels.errors import InvalidInput

# Heads whose emergence is printed for each score.
SHOWN = 8


def timeline(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL@*|MODEL...",
            help="headscope/induction@*, a folder of checkpoints, or folders and NAME@REVISION",
        ),
    ],
    analysis: Annotated[str, typer.Option(help="name of the analysis")],
    folder: Annotated[Path, typer.Option("--out", help="folder of the timeline")],
    prompts: Annotated[
        Path | None, typer.Option(help="text file (a prompt a line) or JSONL, for all checkpoints")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="task, or JSONL file, instead of the analysis' own")
    ] = None,
    number: Annotated[int | None, typer.Option(help="prompts drawn from the task")] = None,
    seed: Annotated[int, typer.Option(help="seed of the task")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="an option of the analysis"),
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help="training steps, as 0,500,1000, where names do not say them")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace another timeline that the folder holds")
    ] = False,
) -> None:
    """Run an analysis over the checkpoints of a model, and print when its heads emerge."""
    from headscope.analyses import series
    from headscope.app.pipeline import parse_settings
    from headscope.app.prompt_files import read_prompts
    from headscope.app.report.timeline import scores, scores_in_order, write_page

    options = parse_settings([f"{analysis}.{setting}" for setting in settings or []])
    with bar(err) as progress:
        result = series.timeline(
            analysis,
            models if len(models) > 1 else models[0],
            None if prompts is None else read_prompts(prompts),
            task=task,
            options=options.get(analysis),
            n=number,
            seed=seed,
            steps=_numbers(steps),
            out=folder,
            overwrite=overwrite,
            progress=progress,
        )
    page = write_page(result, folder)
    print_text(result.attrs["note"])
    for score in scores(result):
        order = series.emergence(result, score).attrs["order"]
        if order:
            print_text(f"{score}: {_order(order)}")
    ordered = scores_in_order(result)
    if ordered is not None:
        print_text(f"order: {ordered.attrs['note']}")
    print_text(f"timeline: {folder / 'timeline.safetensors'}, figures: {page}")


def _order(rows: Sequence[dict[str, Any]]) -> str:
    """Describe in one line when heads emerge."""
    from headscope.app.report.timeline import interval

    heads = [f"{row['name']} at step {row['step']:g} ({interval(row)})" for row in rows[:SHOWN]]
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return ", ".join(heads) + more


def _numbers(steps: str | None) -> list[float] | None:
    if steps is None:
        return None
    try:
        return [float(step) for step in steps.split(",")]
    except ValueError as error:
        raise InvalidInput(
            f"--steps: {steps!r} is no list of numbers, such as 0,500,1000"
        ) from error

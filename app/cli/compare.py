"""``headscope compare``: two runs, head by head."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from headscope.app.cli.console import err, out, print_text
from headscope.app.cli.progress import Report, bar
from headscope.kernels.errors import HeadscopeError, InvalidInput
from headscope.kernels.formatting import amount

if TYPE_CHECKING:
    import xarray as xr

    from headscope.probes.storage.run_folder import Run


def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="folder of a run")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="folder of another run")],
    scores: Annotated[
        list[str] | None,
        typer.Option(
            "--score",
            metavar="ANALYSIS.SCORE",
            help="score to compare, several; capture.NAME for a statistic; default: all they share",
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="ablate every head of both models on this task, and compare")
    ] = None,
    number: Annotated[int, typer.Option(min=2, help="prompts of the task")] = 16,
    top: Annotated[int, typer.Option(min=1, help="heads of either circuit")] = 5,
    across: Annotated[
        list[str] | None, typer.Option(help="field that may differ: units, convention, options")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--out", help="JSON file for all differences, replaced if there")
    ] = None,
) -> None:
    """Compare two runs head by head: differences with intervals, and how much their heads agree."""
    from headscope.app.run_comparison import compare_score, pairs, record
    from headscope.probes.storage import dataset_file, run_folder

    runs = run_folder.open(first), run_folder.open(second)
    if file is not None and not file.parent.is_dir():
        raise InvalidInput(f"--out: there is no folder {file.parent}; make it first")
    if task is not None:
        with bar(err) as progress:
            lost = _ablated(runs, task, number, progress)
        compared = {"lost without the head": (*lost, "lost")}
    else:
        compared = pairs(runs, scores)
    table = Table(title="second − first", title_justify="left")
    for title in ("score", "ranks agree (ρ)", f"top {top} shared", "by chance, p"):
        table.add_column(title)
    table.add_column("heads that changed most (difference, 95 % interval)")
    rows, refused = [], []
    with bar(err) as progress:
        for at, (score, pair) in enumerate(compared.items()):
            progress("scores", at, len(compared))
            try:
                row = compare_score(score, pair, top, across or ())[1]
            except HeadscopeError as error:
                if scores or task:
                    raise
                refused.append(f"not compared: {score}: {error}")
                continue
            rows.append(row)
            table.add_row(score, *_cells(row))
        progress("scores", len(compared), len(compared))
    for line in refused:
        print_text(line, err)
    if not rows:
        raise InvalidInput("runs: they share no score that can be compared; analyze both alike")
    out.print(table)
    for row in rows:
        print_text(f"{row['score']}: {row['summary']}")
    if file is not None:
        sides = [(run.path, str(run.manifest["model"])) for run in runs]
        content = json.dumps(record(sides, rows), indent=1)
        dataset_file.write_text(file, content + "\n")
        print_text(f"differences: {file}")


def _ablated(
    runs: tuple[Run, Run], task: str, number: int, progress: Report
) -> tuple[xr.Dataset, xr.Dataset]:
    """Ablate every head of both models on the same prompts."""
    from headscope.analyses._runtime.expected_work import share
    from headscope.analyses._runtime.progress import reporting
    from headscope.analyses.comparison import removed
    from headscope.app.pipeline import open_model
    from headscope.probes.prompts import tasks
    from headscope.probes.prompts.reading import read

    lost = []
    for at, model in enumerate([open_model(run) for run in runs], 1):
        drawn = tasks.make(task, tokenizer=model.tokenizer, n=number)
        layers = len(model.geometry.attending)
        tokens = sum(map(len, read(model, drawn).ids))
        work = tokens * layers * (1 + layers * model.heads * share(layers))
        with reporting(partial(progress, f"{at}/2 {model.name} without each head"), work):
            lost.append(removed(model, drawn))
    return lost[0], lost[1]


def _cells(row: dict[str, Any]) -> list[str]:
    cells = ["" if row["agreement"] is None else f"{amount(row['agreement'])}", "", ""]
    if "top" in row:
        cells[1:] = str(len(row["top"]["shared"])), amount(row["top"]["p_value"])
    heads = (
        f"{head['head']} {_short(head['difference'], '+')} "
        f"({_short(head['lower'])} to {_short(head['upper'])})"
        for head in row["heads"][:3]
    )
    return [*cells, ", ".join(heads)]


def _short(number: float | None, sign: str = "") -> str:
    return "nan" if number is None else f"{number:{sign}.3g}"

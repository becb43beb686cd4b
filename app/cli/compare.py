"""The command that holds two runs against each other, head by head."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from headscope.kernels.errors import HeadscopeError, InvalidInput

if TYPE_CHECKING:
    import xarray as xr

    from headscope.probes.storage.run_folder import Run

out = Console()
err = Console(stderr=True)
# Name under which the statistics of a run's capture are scores, too.
CAPTURE = "capture"


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
        str | None,
        typer.Option("--task", help="ablate every head of both models on this task, and compare"),
    ] = None,
    number: Annotated[int, typer.Option("--number", min=2, help="prompts of the task")] = 16,
    top: Annotated[int, typer.Option("--top", min=1, help="heads of either circuit")] = 5,
    across: Annotated[
        list[str] | None,
        typer.Option("--across", help="field that may differ: units, convention, options"),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--out", help="JSON file for all differences, replaced if there")
    ] = None,
) -> None:
    """Compare two runs head by head: differences with intervals, and how much their heads agree."""
    from headscope.probes.storage import run_folder

    runs = run_folder.open(first), run_folder.open(second)
    if file is not None and not file.parent.is_dir():
        raise InvalidInput(f"--out: there is no folder {file.parent}; make it first")
    if task is not None:
        pairs = {"lost without the head": (*_ablated(runs, task, number), "lost")}
    else:
        pairs = _pairs(runs, scores)
    table, told = _table(top), []
    for score, (one, other, name) in pairs.items():
        try:
            told.append(_compared(table, score, one, other, name, top, across or ()))
        except HeadscopeError as refusal:
            if scores or task:
                raise
            err.print(f"not compared: {score}: {refusal}", markup=False, soft_wrap=True)
    if not told:
        raise InvalidInput("runs: they share no score that can be compared; analyze both alike")
    out.print(table)
    for row in told:
        out.print(f"{row['score']}: {row['said']}", markup=False, soft_wrap=True)
    if file is not None:
        from headscope.probes.storage.dataset_file import write_text

        both = [{"path": str(run.path), "model": run.manifest["model"]} for run in runs]
        write_text(file, json.dumps({"runs": both, "scores": told}, indent=1) + "\n")
        out.print(f"differences: {file}", soft_wrap=True, highlight=False)


def _ablated(runs: tuple[Run, Run], task: str, number: int) -> tuple[xr.Dataset, xr.Dataset]:
    """Take every head of both models out on the same prompts."""
    from headscope.analyses.comparison import removed
    from headscope.app.pipeline import open_model
    from headscope.probes.prompts import tasks

    found = []
    for run in runs:
        model = open_model(run)
        found.append(removed(model, tasks.make(task, tokenizer=model.tokenizer, n=number)))
    return found[0], found[1]


def _pairs(
    runs: tuple[Run, Run], scores: Sequence[str] | None
) -> dict[str, tuple[xr.Dataset, xr.Dataset, str]]:
    """Find what is compared: (of the first, of the second, name of the variable) by score."""
    sides = [{CAPTURE: run.capture, **run.results()} for run in runs]
    if scores is None:
        return {
            f"{analysis}.{name}": (one, sides[1][analysis], str(name))
            for analysis, one in sides[0].items()
            if analysis != CAPTURE and analysis in sides[1]
            for name in one.data_vars
            if set(one[name].dims) == {"layer", "head"}
            and name in sides[1][analysis]
            and "interval_of" not in one[name].attrs
        }
    found = {}
    for score in scores:
        analysis, _, name = score.partition(".")
        for side, run in zip(sides, runs, strict=True):
            if analysis not in side or name not in side[analysis]:
                raise InvalidInput(
                    f"--score: {run.path} has no {score!r}; headscope analyze makes it"
                )
        found[score] = sides[0][analysis], sides[1][analysis], name
    return found


def _table(top: int) -> Table:
    table = Table(title="second − first", title_justify="left")
    for title in ("score", "ranks agree (ρ)", f"top {top} shared", "by chance, p"):
        table.add_column(title)
    table.add_column("heads that changed most (difference, 95 % interval)")
    return table


def _compared(
    table: Table,
    score: str,
    one: xr.Dataset,
    other: xr.Dataset,
    name: str,
    top: int,
    across: Sequence[str],
) -> dict[str, Any]:
    """Compare one score, add its row to the table, and return all of it as JSON knows it."""
    import numpy as np

    from headscope.analyses.comparison import compare, from_result, overlap

    change = compare(one, other, [name], across=across)
    values, lower, upper = (change[f"{name}{end}"].values for end in ("", "_lower", "_upper"))
    order = [
        (int(at) // values.shape[1], int(at) % values.shape[1])
        for at in np.argsort(-np.nan_to_num(np.abs(values)), axis=None, kind="stable")
    ]
    row: dict[str, Any] = {
        "score": score,
        "units": change[name].attrs["units"],
        "pairing": change[name].attrs["pairing"],
        "agreement": _number(change[f"{name}_agreement"].item()),
        "changed": change.attrs["changed"][name],
        "heads": [
            {
                "head": f"L{layer}H{head}",
                "difference": _number(values[layer, head]),
                "lower": _number(lower[layer, head]),
                "upper": _number(upper[layer, head]),
            }
            for layer, head in order
        ],
        "said": f"{len(change.attrs['changed'][name])} of {int(np.isfinite(values).sum())} "
        f"intervals leave out 0 ({change[name].attrs['pairing']}).",
    }
    cells = ["", ""]
    if set(one[name].dims) <= {"prompt", "layer", "head"}:
        found = overlap(*(from_result(side, name, top) for side in (one, other)))
        row["top"] = {"heads": top, "shared": found.attrs["shared_heads"],
                      "p_value": float(found["p_value"])}  # fmt: skip
        cells = [f"{int(found['shared'])}", f"{float(found['p_value']):.2g}"]
    said = ", ".join(
        f"L{layer}H{head} {values[layer, head]:+.3g} "
        f"({lower[layer, head]:.3g} to {upper[layer, head]:.3g})"
        for layer, head in order[:3]
    )
    rho = row["agreement"]
    table.add_row(score, "" if rho is None else f"{rho:.2f}", *cells, said)
    return row


def _number(value: Any) -> float | None:
    """Return a number as JSON knows it, which has no NaN."""
    number = float(value)
    return number if number == number and abs(number) != float("inf") else None

"""``headscope compare``: two runs, head by head."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from headscope.app.cli.console import err, out, say
from headscope.app.cli.progress import Report, bar
from headscope.kernels.errors import HeadscopeError, InvalidInput
from headscope.kernels.formatting import amount

if TYPE_CHECKING:
    import xarray as xr

    from headscope.probes.storage.run_folder import Run

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
    from headscope.probes.storage import dataset_file, run_folder

    runs = run_folder.open(first), run_folder.open(second)
    if file is not None and not file.parent.is_dir():
        raise InvalidInput(f"--out: there is no folder {file.parent}; make it first")
    if task is not None:
        with bar(err) as progress:
            pairs = {"lost without the head": (*_ablated(runs, task, number, progress), "lost")}
    else:
        pairs = _pairs(runs, scores)
    table = Table(title="second − first", title_justify="left")
    for title in ("score", "ranks agree (ρ)", f"top {top} shared", "by chance, p"):
        table.add_column(title)
    table.add_column("heads that changed most (difference, 95 % interval)")
    rows, refused = [], []
    with bar(err) as progress:
        for at, (score, pair) in enumerate(pairs.items()):
            progress("scores", at, len(pairs))
            try:
                row = _compared(score, *pair, top, across or ())
            except HeadscopeError as error:
                if scores or task:
                    raise
                refused.append(f"not compared: {score}: {error}")
                continue
            rows.append(row)
            table.add_row(score, *_cells(row))
        progress("scores", len(pairs), len(pairs))
    for line in refused:
        say(line, err)
    if not rows:
        raise InvalidInput("runs: they share no score that can be compared; analyze both alike")
    out.print(table)
    for row in rows:
        say(f"{row['score']}: {row['summary']}")
    if file is not None:
        both = [{"path": str(run.path), "model": run.manifest["model"]} for run in runs]
        content = json.dumps({"runs": both, "scores": rows}, indent=1)
        dataset_file.write_text(file, content + "\n")
        say(f"differences: {file}")


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
        made = tasks.make(task, tokenizer=model.tokenizer, n=number)
        layers = len(model.geometry.attending)
        tokens = sum(map(len, read(model, made).ids))
        work = tokens * layers * (1 + layers * model.heads * share(layers))
        with reporting(partial(progress, f"{at}/2 {model.name} without each head"), work):
            lost.append(removed(model, made))
    return lost[0], lost[1]


def _pairs(
    runs: tuple[Run, Run], scores: Sequence[str] | None
) -> dict[str, tuple[xr.Dataset, xr.Dataset, str]]:
    """List what is compared by score: the results of both runs, and the name of the variable."""
    first, second = ({CAPTURE: run.capture, **run.results()} for run in runs)
    if scores is None:
        return {
            f"{analysis}.{name}": (result, second[analysis], str(name))
            for analysis, result in first.items()
            if analysis != CAPTURE and analysis in second
            for name in result.data_vars
            if set(result[name].dims) == {"layer", "head"}
            and name in second[analysis]
            and "interval_of" not in result[name].attrs
        }
    pairs = {}
    for score in scores:
        analysis, _, name = score.partition(".")
        for results, run in zip((first, second), runs, strict=True):
            if analysis not in results or name not in results[analysis]:
                raise InvalidInput(
                    f"--score: {run.path} has no {score!r}; headscope analyze makes it"
                )
        pairs[score] = first[analysis], second[analysis], name
    return pairs


def _compared(
    score: str, first: xr.Dataset, second: xr.Dataset, name: str, top: int, across: Sequence[str]
) -> dict[str, Any]:
    """Compare one score, and return it as JSON can hold it: heads that changed most first."""
    import numpy as np

    from headscope.analyses.comparison import compare, from_result, overlap

    change = compare(first, second, [name], across=across)
    ends = {"difference": name, "lower": f"{name}_lower", "upper": f"{name}_upper"}
    values = change[name].values
    order = np.argsort(-np.nan_to_num(np.abs(values)), axis=None, kind="stable")
    heads = [divmod(int(place), values.shape[1]) for place in order]
    changed = change.attrs["changed"][name]
    pairing = change[name].attrs["pairing"]
    row: dict[str, Any] = {
        "score": score,
        "units": change[name].attrs["units"],
        "pairing": pairing,
        "agreement": _number(change[f"{name}_agreement"].item()),
        "changed": changed,
        "heads": [
            {
                "head": f"L{layer}H{head}",
                **{end: _number(change[key].values[layer, head]) for end, key in ends.items()},
            }
            for layer, head in heads
        ],
        "summary": f"{len(changed)} of {int(np.isfinite(values).sum())} intervals leave out 0 "
        f"({pairing}).",
    }
    if set(first[name].dims) <= {"prompt", "layer", "head"}:
        shared = overlap(*(from_result(side, name, top) for side in (first, second)))
        row["top"] = {
            "heads": top,
            "shared": shared.attrs["shared_heads"],
            "p_value": float(shared["p_value"]),
        }
    return row


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


def _number(value: Any) -> float | None:
    """Return a number as JSON can hold it, which has no NaN."""
    number = float(value)
    return number if math.isfinite(number) else None

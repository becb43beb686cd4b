"""Series: the command that runs an analysis over checkpoints, and the page that shows it."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headscope.kernels.errors import HeadscopeError, InvalidInput

if TYPE_CHECKING:
    import xarray as xr

# Entries that a table on a terminal shows of each score.
SHOWN = 8


def timeline(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL@*|MODEL...",
            help="headscope/induction@*, a folder of checkpoints, or folders and NAME@REVISION",
        ),
    ],
    analysis: Annotated[str, typer.Option("--analysis", help="name of the analysis")],
    folder: Annotated[Path, typer.Option("--out", help="folder of the timeline")],
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="text file (a prompt a line) or JSONL, for all checkpoints"),
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="task, or JSONL file, instead of the analysis' own")
    ] = None,
    number: Annotated[
        int | None, typer.Option("--number", help="prompts drawn from the task")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="seed of the task")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="an option of the analysis"),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option("--steps", help="training steps, as 0,500,1000, where names do not say them"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace another timeline that the folder holds")
    ] = False,
) -> None:
    """Run an analysis over the checkpoints of a model, and say when its heads emerge."""
    from rich.console import Console

    from headscope.analyses import series
    from headscope.app.job import parse_settings
    from headscope.app.progress import bar
    from headscope.app.texts import read_prompts

    given = parse_settings([f"{analysis}.{one}" for one in settings or []])
    with bar(Console(stderr=True)) as progress:
        found = series.timeline(
            analysis,
            models if len(models) > 1 else models[0],
            None if prompts is None else read_prompts(prompts),
            task=task,
            options=given.get(analysis),
            n=number,
            seed=seed,
            steps=_numbers(steps),
            out=folder,
            overwrite=overwrite,
            progress=progress,
        )
    page = write(found, folder)
    out = Console()
    plain: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
    out.print(str(found.attrs["note"]), **plain)
    for score in scores(found):
        said = series.emergence(found, score).attrs
        if said["order"]:
            out.print(f"{score}: {_order(said['order'])}", **plain)
    out.print(f"timeline: {folder / 'timeline.safetensors'}, figures: {page}", **plain)


def served(folder: Path) -> Path:
    """Return the folder that a dashboard opens: of a run, or of a timeline.

    Raises
    ------
    HeadscopeError
        When there is neither.
    """
    from headscope.analyses.series import kept
    from headscope.app.job import open_run

    return folder if kept.holds(folder) else open_run(folder).path


def scores(found: xr.Dataset) -> list[str]:
    """List the scores of heads that a timeline holds."""
    from headscope import viz

    return [name for name in viz.variables(found) if {"layer", "head"} <= set(found[name].dims)]


def drawn(found: xr.Dataset) -> list[str]:
    """List the variables of a timeline that there is a view for."""
    from headscope import viz

    names = []
    for name in viz.variables(found):
        try:
            viz.choose(found[name])
        except HeadscopeError:
            continue
        names.append(name)
    return names


def write(found: xr.Dataset, folder: Path) -> Path:
    """Write ``timeline.html``: a figure of every variable, and when its entries emerge.

    Raises
    ------
    HeadscopeError
        When the folder cannot be written.
    """
    from plotly.offline import get_plotlyjs

    from headscope import viz
    from headscope.analyses.series import emergence, kept
    from headscope.app import page
    from headscope.app.prose import inline
    from headscope.probes.store import write_text

    attrs = found.attrs
    title = f"{attrs['analysis']} over the training of {attrs['model']}"
    warn = "WARNING" in attrs["note"]
    body = [f"<h1>{html.escape(title)}</h1>", page.note(inline(attrs["note"]), warn=warn)]
    for name in drawn(found):
        array = found[name]
        words = str(array.attrs.get("long_name", name))
        body.append(f"<h2>{inline(words)}</h2>")
        caption = ". ".join(
            inline(str(array.attrs[key])).rstrip(".")
            for key in ("convention", "source")
            if key in array.attrs
        )
        body.append(page.plot(name, viz.draw(found, name), words, caption))
        if name in scores(found):
            body.append(_table(emergence(found, name)))
    hidden = ("by_checkpoint", "note")
    body.append(
        page.folded("Provenance", page.pairs({k: attrs[k] for k in attrs if k not in hidden}))
    )
    body.append(
        page.folded(
            "By checkpoint",
            page.pairs({k: json.dumps(v) for k, v in attrs["by_checkpoint"].items()}),
        )
    )
    path = folder / kept.PAGE
    write_text(path, page.page(title, body, get_plotlyjs()))
    return path


def _table(found: xr.Dataset) -> str:
    from headscope.app import page

    rows = [
        (
            html.escape(str(row["name"])),
            f"{row['step']:g}",
            _ends(row),
            f"{row['final']:.3f}",
        )
        for row in found.attrs["order"][: 3 * SHOWN]
    ]
    if not rows:
        return f"<p>Nothing emerges ({html.escape(found.attrs['convention'])}).</p>"
    head = ("Emerges, in order", "at step", "surely between", "at the end")
    note = f"<figcaption>{html.escape(found.attrs['convention'])}.</figcaption>"
    return page.table(head, rows, numbers=3) + note


def _ends(row: dict[str, Any]) -> str:
    upper = "–" if row["upper"] is None else f"{row['upper']:g}"
    return f"{row['lower']:g} and {upper}"


def _order(rows: list[dict[str, Any]]) -> str:
    said = [f"{row['name']} at step {row['step']:g} ({_ends(row)})" for row in rows[:SHOWN]]
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return ", ".join(said) + more


def _numbers(steps: str | None) -> list[float] | None:
    if steps is None:
        return None
    try:
        return [float(one) for one in steps.split(",")]
    except ValueError as error:
        raise InvalidInput(
            f"--steps: {steps!r} is no list of numbers, such as 0,500,1000"
        ) from error

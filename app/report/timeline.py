"""The page of a timeline: every variable over training, and when heads emerge."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import xarray as xr

from headscope import viz
from headscope.analyses.series import emergence, order, timeline_folder
from headscope.app.report import page
from headscope.app.report.docstrings import inline
from headscope.kernels.errors import HeadscopeError, NotApplicable
from headscope.kernels.formatting import amount
from headscope.probes.storage.dataset_file import write_text

# Rows of the table of emergence.
SHOWN = 24


def scores(timeline: xr.Dataset) -> list[str]:
    """List the scores of heads that a timeline holds."""
    names = viz.variables(timeline)
    return [name for name in names if {"layer", "head"} <= set(timeline[name].dims)]


def drawn(timeline: xr.Dataset) -> list[str]:
    """List the variables of a timeline that there is a view for."""
    names = []
    for name in viz.variables(timeline):
        with suppress(HeadscopeError):
            viz.choose(timeline[name])
            names.append(name)
    return names


def scores_in_order(timeline: xr.Dataset) -> xr.Dataset | None:
    """Order the scores of a timeline by their emergence; None where fewer than two emerge."""
    with suppress(NotApplicable):
        return order(timeline)
    return None


def order_rows(ordered: xr.Dataset) -> list[tuple[str, ...]]:
    """List scores in order: name, first head, step, interval, and whether it follows the last."""
    answers = {"supported": "yes", "too_few": "undecided", "disagreement": "levels disagree"}
    separated = ["–", *(answers[state] for state in ordered.attrs["pairs"])]
    return [
        (row["score"], ", ".join(row["entries"]) or "–", f"{row['step']:g}", interval(row), after)
        for row, after in zip(ordered.attrs["order"], separated, strict=True)
    ]


def write_page(timeline: xr.Dataset, folder: Path) -> Path:
    """Write ``timeline.html``: a figure of every variable, and when its entries emerge."""
    attrs = timeline.attrs
    variables = [_variable(timeline, name) for name in drawn(timeline)]
    ordered = scores_in_order(timeline)
    progress: list[page.Figure] = []
    if ordered is not None:
        caption = inline(str(ordered["progress"].attrs["convention"]))
        progress = [page.figure("order", ordered, "progress", "Which score rises first", caption)]
    text = page.render(
        "timeline",
        f"{attrs['analysis']} over the training of {attrs['model']}",
        [*progress, *(figure for figure, _ in variables)],
        note=attrs["note"],
        warn=page.is_doubtful(timeline),
        variables=variables,
        progress=progress,
        order=[] if ordered is None else order_rows(ordered),
        order_note="" if ordered is None else ordered.attrs["note"],
        provenance={key: attrs[key] for key in attrs if key not in ("by_checkpoint", "note")},
        by_checkpoint=attrs["by_checkpoint"],
    )
    path = folder / timeline_folder.PAGE
    write_text(path, text)
    return path


def _variable(timeline: xr.Dataset, name: str) -> tuple[page.Figure, dict[str, Any] | None]:
    """Draw a variable, and list in which order its heads emerge where it is a score of heads."""
    attrs = timeline[name].attrs
    parts = [inline(str(attrs[key])) for key in ("convention", "source") if key in attrs]
    title = str(attrs.get("long_name", name))
    figure = page.figure(name, timeline, name, title, page.sentences(parts))
    if name not in scores(timeline):
        return figure, None
    emerged = emergence(timeline, name).attrs
    rows = [
        (row["name"], f"{row['step']:g}", interval(row), f"{amount(row['final'])}")
        for row in emerged["order"][:SHOWN]
    ]
    return figure, {"rows": rows, "convention": emerged["convention"]}


def interval(row: dict[str, Any]) -> str:
    """Return between which checkpoints a head or score emerges."""
    lower, upper = ("–" if row[end] is None else f"{row[end]:g}" for end in ("lower", "upper"))
    return f"{lower} and {upper}"

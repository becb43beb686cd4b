"""The page of a timeline: every variable over training, and when heads emerge."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import xarray as xr
from plotly.offline import get_plotlyjs

from headscope import viz
from headscope.analyses.series import emergence, kept
from headscope.app.report import page
from headscope.app.report.docstrings import inline
from headscope.kernels.errors import HeadscopeError
from headscope.probes.storage.dataset_file import write_text

# Rows of the table of emergence.
SHOWN = 24


def scores(found: xr.Dataset) -> list[str]:
    """List the scores of heads that a timeline holds."""
    return [name for name in viz.variables(found) if {"layer", "head"} <= set(found[name].dims)]


def drawn(found: xr.Dataset) -> list[str]:
    """List the variables of a timeline that there is a view for."""
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
    rows = [
        (
            html.escape(str(row["name"])),
            f"{row['step']:g}",
            interval(row),
            f"{row['final']:.3f}",
        )
        for row in found.attrs["order"][:SHOWN]
    ]
    if not rows:
        return f"<p>Nothing emerges ({html.escape(found.attrs['convention'])}).</p>"
    head = ("Emerges, in order", "at step", "surely between", "at the end")
    note = f"<figcaption>{html.escape(found.attrs['convention'])}.</figcaption>"
    return page.table(head, rows, numbers=3) + note


def interval(row: dict[str, Any]) -> str:
    """Say between which checkpoints a head emerges."""
    upper = "–" if row["upper"] is None else f"{row['upper']:g}"
    return f"{row['lower']:g} and {upper}"

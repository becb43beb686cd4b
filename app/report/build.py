"""The report of a run: one HTML file that opens anywhere, with tables beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from markupsafe import Markup

from headscope import analyses, viz
from headscope.app.report import head_kinds, page
from headscope.app.report.docstrings import inline, render
from headscope.app.report.findings import by_score, findings, records
from headscope.app.report.scores import heads_table, interval_text
from headscope.kernels.errors import InvalidInput
from headscope.probes.storage.dataset_file import replacing
from headscope.probes.storage.run_folder import REPORT
from headscope.viz import number

if TYPE_CHECKING:
    import pandas as pd

    from headscope.probes.storage.run_folder import Run

PROVENANCE = (
    "model", "revision", "architecture", "attention", "dtype", "task", "seed", "register",
    "redrawn", "n_prompts", "prompts_sha256", "stats", "convention", "headscope",
)  # fmt: skip
# Of more heads the table is read from the CSV file.
LISTED = 300
# Larger variables are in the run folder; in a JSON file they would only be in the way.
INLINE = 20_000


def write_report(run: Run, out: Path | None = None) -> Path:
    """Write the report of a run into a folder, its own without one: all of its files, or none.

    Returns
    -------
    The path of ``report.html``. Beside it stand ``heads.parquet`` and ``heads.csv`` (one row a
    head, one column a score) and ``report.json`` (findings, results and provenance).
    """
    results = run.results()
    if not results:
        raise InvalidInput(f"run: {run.path} has no results; headscope analyze {run.path}")
    known = [name for name in analyses.names() if name in results]
    ordered = {name: results[name] for name in (*known, *(set(results) - set(known)))}
    return write_files(run.path if out is None else out, run.manifest, ordered)


def write_files(
    folder: Path,
    manifest: Mapping[str, Any],
    results: Mapping[str, xr.Dataset],
    plotly_address: str | None = None,
) -> Path:
    """Write the report of results that are in memory, into a folder that exists.

    ``plotly_address`` is that of a plotly.js that reports share; without it the file holds it.
    """
    table = heads_table(results)
    texts = {
        "report.html": html(manifest, results, table, plotly_address),
        "heads.csv": table.to_csv(index=False),
        "report.json": json.dumps(
            machine_readable(manifest, results), indent=1, ensure_ascii=False, allow_nan=False
        ),
    }
    with ExitStack() as stack:
        places = {name: Path(stack.enter_context(replacing(folder / name))) for name in REPORT}
        for name, text in texts.items():
            places[name].write_text(text, encoding="utf-8")
        table.to_parquet(places["heads.parquet"], index=False)
    return folder / "report.html"


def html(
    manifest: Mapping[str, Any],
    results: Mapping[str, xr.Dataset],
    table: pd.DataFrame,
    plotly_address: str | None = None,
) -> str:
    """Return the page of a report, plotly.js inside or at an address."""
    return page.render(
        "report",
        f"Attention heads of {manifest['model']}",
        plotly_address,
        made=_made(manifest),
        findings=[
            [
                {**asdict(finding), "interval": interval_text(finding.lower, finding.upper)}
                for finding in members
            ]
            for members in by_score(findings(results)).values()
        ],
        kinds=[
            (
                kind.name,
                f"{kind.stage} (placed by {kind.placed_by})",
                kind.evidence,
                kind.method,
                kind.listed,
            )
            for kind in head_kinds.collect(results).values()
        ],
        sections=[_section(name, result) for name, result in results.items()],
        heads=_heads(table),
        head_count=len(table),
        manifest=manifest,
    )


def machine_readable(
    manifest: Mapping[str, Any], results: Mapping[str, xr.Dataset]
) -> dict[str, Any]:
    """Return findings, results and provenance as JSON can hold them; missing values are null."""
    return {
        "run": dict(manifest),
        "findings": records(findings(results)),
        "analyses": {
            name: {
                "attrs": dict(result.attrs),
                "coords": {str(key): _plain(array) for key, array in result.coords.items()},
                "variables": {str(key): _plain(array) for key, array in result.items()},
            }
            for name, result in results.items()
        },
    }


def _plain(array: xr.DataArray) -> dict[str, Any]:
    """Return an array as JSON can hold it."""
    plain: dict[str, Any] = {"dims": list(array.dims), "attrs": dict(array.attrs)}
    if array.size > INLINE:
        return {**plain, "values": None, "note": f"{array.size} values: see the run folder"}
    values: Any = array.values
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        values = values.astype(object)
        values[~finite] = None
    return {**plain, "values": values.tolist()}


def _made(manifest: Mapping[str, Any]) -> str:
    """Say what was captured, on which prompts, when."""
    prompts = manifest.get("task") or manifest.get("prompts") or "own prompts"
    if manifest.get("register"):
        prompts += f", {manifest['register']} register"
    if manifest.get("redrawn"):
        prompts += f", {manifest['redrawn']} others drawn that its tokenizer does not allow"
    attention = str(manifest.get("attention", "self"))
    which = "" if attention == "self" else f", {attention} attention"
    when = f" at {manifest['created']}" if "created" in manifest else ""
    return (
        f"{manifest['architecture']}{which}, revision {manifest['revision']}. Captured on "
        f"{manifest['n_prompts']} prompts ({prompts}){when} with headscope "
        f"{manifest['headscope']}."
    )


def _section(name: str, result: xr.Dataset) -> dict[str, Any]:
    """Return what the page says of one analysis: definition, notes, figures, options."""
    own_title = str(result.attrs.get("title", name))
    docstring = analyses.load(name).__doc__ or "" if name in analyses.names() else ""
    title, text = render(docstring or own_title)
    notes = []
    if result.attrs.get("intact"):
        notes.append((f"{result.attrs['intact']}.", False))
    if result.attrs.get("note"):
        notes.append((str(result.attrs["note"]), page.is_doubtful(result)))
    if result.attrs.get("skipped"):
        notes.append((f"Not run: {result.attrs['skipped']}", True))
    variables = viz.variables(result)
    made = {key: result.attrs[key] for key in PROVENANCE if result.attrs.get(key) not in (None, "")}
    hidden = "skipped" in result.attrs and not variables
    return {
        "name": name,
        "title": title.rstrip("."),
        "short_title": own_title.split(":")[0],
        "text": text,
        "notes": notes,
        "cards": [_card(result, key) for key in variables if result[key].ndim == 0],
        "figures": [_figure(name, result, key) for key in variables if result[key].ndim],
        "options": json.loads(result.attrs.get("options") or "{}"),
        "provenance": {} if hidden else made,
    }


def _card(result: xr.Dataset, name: str) -> dict[str, str]:
    """Return a single number with its interval."""
    lower, upper = viz.interval(result, name)
    return {
        "title": str(result[name].attrs.get("long_name", name)),
        "value": number.words(result[name]),
        "interval": "" if lower is None or upper is None else interval_text(lower, upper),
    }


def _figure(analysis: str, result: xr.Dataset, name: str) -> page.Figure:
    """Draw a variable, with its name, convention, source and heads below."""
    attrs = result[name].attrs
    parts = [Markup("<code>{}</code>").format(name)]
    parts += [inline(str(attrs[key])) for key in ("convention", "source") if key in attrs]
    if isinstance(attrs.get("heads"), Mapping):
        for condition, sets in attrs["heads"].items():
            lists = (", ".join(map(str, heads)) if isinstance(heads, list) else str(heads)
                     for heads in sets)  # fmt: skip
            parts.append(inline(str(condition)) + ": " + " / ".join(lists))
    alt = f"{attrs.get('long_name', name)}, of analysis {analysis}"
    return page.figure(f"{analysis}-{name}", result, name, alt, page.sentences(parts) + ".")


def _heads(table: pd.DataFrame) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return the scores of all heads by analysis: name, titles, rows; none of too many heads."""
    if table.empty or len(table) > LISTED:
        return []
    columns: dict[str, list[str]] = {}
    for name in table.columns[3:]:
        if not name.endswith(("_lower", "_upper")):
            columns.setdefault(name.split(".")[0], []).append(name)
    return [
        (
            analysis,
            ["Head", *(name.partition(".")[2].replace("_", " ") for name in names)],
            [
                [str(row["name"]), *(viz.amount(float(row[name])) for name in names)]
                for _, row in table.iterrows()
            ],
        )
        for analysis, names in columns.items()
    ]

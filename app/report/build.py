"""Report: what a run found, as one HTML file that opens anywhere, with tables beside it."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from headscope import analyses, viz
from headscope.app.report import page
from headscope.app.report.docstrings import inline, render
from headscope.app.report.findings import by_score, findings, heads_table, records
from headscope.kernels.errors import InvalidInput
from headscope.viz import number

if TYPE_CHECKING:
    import pandas as pd

    from headscope.probes.storage.run_folder import Run

# Written by the analyses in front of a conclusion that must not be overlooked.
ALARM = re.compile(r"\b(DISAGREEMENT|INCONCLUSIVE|WARNING)\b")
PROVENANCE = (
    "model", "revision", "architecture", "attention", "dtype", "task", "seed", "n_prompts",
    "prompts_sha256", "stats", "convention", "headscope",
)  # fmt: skip
# Of more heads the table is read from the CSV file.
LISTED = 300
# Larger variables are in the run folder; in a JSON file they would only be in the way.
INLINE = 20_000


def write(run: Run, out: Path | None = None) -> Path:
    """Write the report of a run: all of its files, or none.

    Parameters
    ----------
    run
        A run with results.
    out
        Folder of the files; the folder of the run without it.

    Returns
    -------
    The path of ``report.html``. Beside it stand ``heads.parquet`` and ``heads.csv`` (one row a
    head, one column a score) and ``report.json`` (findings, results and provenance).

    Raises
    ------
    InvalidInput
        When the run has no results, or the folder cannot be written.
    """
    results = ordered(run.results())
    if not results:
        raise InvalidInput(f"run: {run.path} has no results; headscope analyze {run.path}")
    return lay_out(run.path if out is None else out, run.manifest, results)


def lay_out(
    folder: Path, manifest: Mapping[str, Any], results: Mapping[str, xr.Dataset], beside: str = ""
) -> Path:
    """Write the report of results that are in memory, as `write` does.

    Parameters
    ----------
    folder
        Folder of the files; it must exist.
    manifest
        What was run, as the manifest of a run.
    results
        Results by the name of their analysis, in order.
    beside
        Address of a plotly.js that reports share; without it the file holds the library.

    Raises
    ------
    HeadscopeError
        When the folder cannot be written.
    """
    from headscope.probes.storage.dataset_file import replacing
    from headscope.probes.storage.run_folder import REPORT

    table = heads_table(results)
    texts = {
        "report.html": compose(manifest, results, table, beside),
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


def ordered(results: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Put results into the order of the analyses folder, others behind."""
    known = [name for name in analyses.names() if name in results]
    return {name: results[name] for name in (*known, *(set(results) - set(known)))}


def compose(
    manifest: Mapping[str, Any],
    results: Mapping[str, xr.Dataset],
    table: pd.DataFrame,
    beside: str = "",
) -> str:
    """Return the HTML of a report, plotly.js inside or at the address ``beside``."""
    from plotly.offline import get_plotlyjs

    title = f"Attention heads of {manifest['model']}"
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="lead">{_made(manifest)}</p>',
        _contents(results),
        '<h2 id="findings">Heads that stand out</h2>',
        _findings(results),
    ]
    for name, result in results.items():
        body += section(name, result)
    body += [
        '<h2 id="heads">All heads</h2>',
        '<p>One row a head, one column a score: <a href="heads.csv">heads.csv</a>, '
        '<a href="heads.parquet">heads.parquet</a>. Everything, for programs: '
        '<a href="report.json">report.json</a>.</p>',
        _heads(table),
        '<h2 id="provenance">Provenance</h2>',
        page.pairs(manifest),
    ]
    return page.page(title, body, "" if beside else get_plotlyjs(), beside)


def section(name: str, result: xr.Dataset) -> Iterator[str]:
    """Yield the parts of one analysis: what it is, what it says, figures, options."""
    known = name in analyses.names()
    docstring = analyses.load(name).__doc__ or "" if known else ""
    summary, text = render(docstring or str(result.attrs.get("title", name)))
    yield f'<h2 id="{html.escape(name)}">{inline(summary.rstrip("."))}</h2>\n{text}'
    for key in ("note", "skipped"):
        if result.attrs.get(key):
            words = str(result.attrs[key])
            said = f"Not run: {words}" if key == "skipped" else words
            yield page.note(inline(said), warn=key == "skipped" or bool(ALARM.search(words)))
    shown = viz.variables(result)
    if "skipped" in result.attrs and not shown:
        return
    numbers = [each for each in shown if result[each].ndim == 0]
    if numbers:
        yield f'<div class="cards">{"".join(_card(result, each) for each in numbers)}</div>'
    for each in shown:
        if each not in numbers:
            array = result[each]
            alt = f"{array.attrs.get('long_name', each)}, of analysis {name}"
            yield page.plot(f"{name}-{each}", viz.draw(result, each), alt, _caption(each, array))
    options = json.loads(result.attrs.get("options") or "{}")
    made = {key: result.attrs[key] for key in PROVENANCE if result.attrs.get(key) not in (None, "")}
    yield page.folded("Options", page.pairs(options) if options else "<p>None.</p>")
    yield page.folded("Provenance", page.pairs(made))


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
                "coords": {str(key): _plain(one) for key, one in result.coords.items()},
                "variables": {str(key): _plain(one) for key, one in result.items()},
            }
            for name, result in results.items()
        },
    }


def _plain(array: xr.DataArray) -> dict[str, Any]:
    found: dict[str, Any] = {"dims": list(array.dims), "attrs": dict(array.attrs)}
    if array.size > INLINE:
        return {**found, "values": None, "note": f"{array.size} values: see the run folder"}
    values = array.values
    if values.dtype.kind == "f":
        boxed = values.astype(object)
        boxed[~np.isfinite(values)] = None
        return {**found, "values": boxed.tolist()}
    return {**found, "values": values.tolist()}


def _made(manifest: Mapping[str, Any]) -> str:
    prompts = manifest.get("task") or manifest.get("prompts") or "own prompts"
    kind = str(manifest.get("attention", "self"))
    which = "" if kind == "self" else f", {kind} attention"
    when = f" at {manifest['created']}" if "created" in manifest else ""
    return html.escape(
        f"{manifest['architecture']}{which}, revision {manifest['revision']}. Captured on "
        f"{manifest['n_prompts']} prompts ({prompts}){when} with headscope "
        f"{manifest['headscope']}."
    )


def _contents(results: Mapping[str, xr.Dataset]) -> str:
    titles = {
        name: str(one.attrs.get("title", name)).split(":")[0] for name, one in results.items()
    }
    places = {"findings": "Heads that stand out", **titles, "heads": "All heads"}
    links = "".join(
        f'<li><a href="#{html.escape(name)}">{html.escape(title)}</a></li>'
        for name, title in places.items()
    )
    return f"<nav aria-label='Contents'><ul>{links}</ul></nav>"


def _findings(results: Mapping[str, xr.Dataset]) -> str:
    rows = []
    for (analysis, _), members in by_score(findings(results)).items():
        first = members[0]
        title = f"{inline(first.title)}<small>{html.escape(first.units)}</small>"
        link = f'<a href="#{html.escape(analysis)}">{html.escape(analysis)}</a>'
        cells = []
        for each in members:
            ends = ""
            if np.isfinite(each.lower) and np.isfinite(each.upper):
                ends = f"<small>{viz.amount(each.lower)} to {viz.amount(each.upper)}</small>"
            if each.tied > len(members):
                ends += f"<small>shared by {each.tied} heads</small>"
            cells.append(f"<b>{each.name}</b> {viz.amount(each.value)}{ends}")
        cells += ["–"] * (3 - len(cells))
        rows.append((link, title, first.evidence, *cells))
    head = ("Analysis", "Score", "Evidence", "1st", "2nd", "3rd")
    explained = (
        "<p>The first three heads of every score, with the 95 % interval below where there is one. "
        "Scores with a sign are ranked by size. <em>Correlational</em>: how the attention of the "
        "head looks; <em>causal</em>: what changes without the head.</p>"
    )
    return explained + page.table(head, rows, numbers=3)


def _card(result: xr.Dataset, name: str) -> str:
    array = result[name]
    words = number.words(array)
    lower, upper = viz.interval(result, name)
    ends = ""
    if lower is not None and upper is not None and np.isfinite(float(lower)):
        ends = (
            f"<small>95 % interval {viz.amount(float(lower))} to {viz.amount(float(upper))}</small>"
        )
    title = inline(str(array.attrs.get("long_name", name)))
    return f'<div class="card">{title}<b>{words}</b>{ends}</div>'


def _caption(name: str, array: xr.DataArray) -> str:
    parts = [f"<code>{html.escape(name)}</code>"]
    parts += [
        inline(str(array.attrs[key])) for key in ("convention", "source") if key in array.attrs
    ]
    heads = array.attrs.get("heads")
    if isinstance(heads, Mapping):
        for condition, sets in heads.items():
            lists = [
                ", ".join(map(str, one)) if isinstance(one, list) else str(one) for one in sets
            ]
            parts.append(f"{inline(str(condition))}: {html.escape(' / '.join(lists))}")
    return ". ".join(part.rstrip(".") for part in parts) + "."


def _heads(table: pd.DataFrame) -> str:
    if table.empty or len(table) > LISTED:
        return f"<p>{len(table)} heads: see the files.</p>"
    scores = [name for name in table.columns if not name.endswith(("_lower", "_upper"))][3:]
    groups: dict[str, list[str]] = {}
    for name in scores:
        groups.setdefault(name.split(".")[0], []).append(name)
    parts = []
    for analysis, names in groups.items():
        rows = [
            (str(row["name"]), *(viz.amount(float(row[name])) for name in names))
            for _, row in table.iterrows()
        ]
        head = ("Head", *(html.escape(name.partition(".")[2].replace("_", " ")) for name in names))
        parts.append(page.folded(analysis, page.table(head, rows, numbers=len(names))))
    return "".join(parts)

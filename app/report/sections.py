"""The sections of a report: what every analysis found, by family, near-duplicates as one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from markupsafe import Markup

from headscope import analyses, viz
from headscope.analyses._stats.rank_correlation import ranked
from headscope.app.report import page
from headscope.app.report.docstrings import inline, render
from headscope.app.report.findings import Finding, by_score, findings
from headscope.app.report.scores import collect, indexed, interval_text
from headscope.kernels.formatting import ordinal
from headscope.viz import bars, number

PROVENANCE = (
    "model", "revision", "architecture", "attention", "dtype", "task", "seed", "register",
    "redrawn", "n_prompts", "prompts_sha256", "stats", "convention", "headscope",
)  # fmt: skip
# Of more heads the table is read from the CSV file.
LISTED = 300
# Variables of one analysis with a rank correlation above say the same, where they have this many
# values.
ALIKE, LEAST = 0.98, 8
FIRST = "head_importance"
OTHER = "Other results"


def families(results: Mapping[str, xr.Dataset]) -> list[dict[str, Any]]:
    """Return the families of a report with what their analyses found, importance first."""
    by_name = {name: family for family, names in analyses.families().items() for name in names}
    grouped: dict[str, list[str]] = {}
    for name in sorted(results, key=lambda name: (by_name.get(name) != FIRST, name not in by_name)):
        grouped.setdefault(by_name.get(name, ""), []).append(name)
    ordered = sorted(grouped, key=lambda family: (family != FIRST, not family, family))
    return [
        {
            "name": f"family-{family or 'other'}",
            "title": analyses.heading(family).rstrip(".") if family else OTHER,
            "sections": [section(name, results[name]) for name in grouped[family]],
        }
        for family in ordered
    ]


def section(name: str, result: xr.Dataset) -> dict[str, Any]:
    """Return what the page says of one analysis: notes, heads, numbers, figures, provenance."""
    own_title = str(result.attrs.get("title", name))
    docstring = analyses.docstring(name) if name in analyses.names() else ""
    title, text = render(docstring or own_title)
    notes = []
    if result.attrs.get("intact"):
        notes.append((f"{result.attrs['intact']}.", False))
    if result.attrs.get("note"):
        notes.append((str(result.attrs["note"]), page.is_doubtful(result)))
    if result.attrs.get("skipped"):
        notes.append((f"Not run: {result.attrs['skipped']}", True))
    groups = group_equals(result)
    drawn = [key for key in groups if result[key].ndim]
    provenance = {
        key: result.attrs[key] for key in PROVENANCE if result.attrs.get(key) not in (None, "")
    }
    return {
        "name": name,
        "title": title.rstrip("."),
        "short_title": own_title.split(":")[0],
        "text": text,
        "notes": notes,
        "verdict": str(result.attrs.get("verdict", "")).replace("_", " "),
        "findings": _findings(name, result, groups),
        "numbers": [_number(result, key) for key in groups if not result[key].ndim],
        "figures": [_figure(name, result, key) for key in drawn],
        "alike": [_figure(name, result, key) for first in drawn for key in groups[first]],
        "heads": _heads(name, result),
        "tables": [_entries(result, key) for key in drawn if _is_table(result, key)],
        "options": json.loads(result.attrs.get("options") or "{}"),
        "provenance": {} if result.attrs.get("skipped") and not groups else provenance,
    }


def group_equals(result: xr.Dataset) -> dict[str, list[str]]:
    """Group the variables of a result that say the same, each under the first of its group.

    They have the same dims, are no patterns, and their ranks correlate above 0.98.

    >>> one = xr.DataArray(np.arange(8.0), dims="layer")
    >>> group_equals(xr.Dataset({"one": one, "twice": 2 * one, "minus": -one}))
    {'one': ['twice'], 'minus': []}
    """
    groups: dict[str, list[str]] = {}
    for name in viz.variables(result):
        array = result[name]
        candidates = (key for key in groups if array.dims == result[key].dims)
        first = next((key for key in candidates if _rho(result[key], array) > ALIKE), None)
        if first is None:
            groups[name] = []
        else:
            groups[first].append(name)
    return groups


def _rho(first: xr.DataArray, second: xr.DataArray) -> float:
    """Rank-correlate two variables over the places that both have; 0 of few values."""
    # Patterns share their masked half, which would make all of them alike.
    if {"query", "key"} <= set(first.dims) or first.size < LEAST:
        return 0.0
    if first.dtype.kind not in "fiu" or second.dtype.kind not in "fiu":
        return 0.0
    x, y = (np.asarray(array.values, dtype=float).ravel() for array in (first, second))
    present = np.isfinite(x) & np.isfinite(y)
    return float(np.nan_to_num(ranked(x[present], y[present])))


def _findings(
    name: str, result: xr.Dataset, groups: Mapping[str, list[str]]
) -> list[dict[str, Any]]:
    """Return the first heads of every score, of near-duplicates those of the first."""
    rows = []
    for (_, variable), members in by_score(findings({name: result})).items():
        if variable in groups:
            first = members[0]
            titles = [str(result[key].attrs.get("long_name", key)) for key in groups[variable]]
            heads = [_finding(member) for member in members]
            rows.append({"score": first, "alike": titles, "heads": heads})
    return rows


def _finding(finding: Finding) -> dict[str, str]:
    return {
        "name": finding.name,
        "value": viz.amount(finding.value),
        "interval": interval_text(finding.lower, finding.upper),
        "effect": finding.effect,
        "tied": ordinal(finding.rank, finding.tied) if finding.tied > 1 else "",
    }


def _number(result: xr.Dataset, name: str) -> tuple[str, str, str]:
    """Return a single number: title, value with its units, interval."""
    lower, upper = viz.interval(result, name)
    interval = "" if lower is None or upper is None else interval_text(lower, upper)
    title = str(result[name].attrs.get("long_name", name))
    return title, number.label_text(result[name]), interval


def _is_table(result: xr.Dataset, name: str) -> bool:
    """Return whether a variable has grouped bars with intervals, too thin to write on."""
    array = result[name]
    has_interval = viz.interval(result, name)[0] is not None and viz.choose(array) is bars
    return has_interval and array.ndim == 2 and array.size <= LISTED


def _entries(result: xr.Dataset, name: str) -> dict[str, Any]:
    """Return the numbers of a variable of two dims with their intervals: a row an entry.

    Columns are the entries of its first dim; what was not measured is a dash.
    """
    group, along = result[name].dims
    parts = [result[f"{name}{end}"] for end in ("", "_lower", "_upper")]
    cells = [part.transpose(along, group).values.tolist() for part in parts]
    rows = [
        [(viz.amount(value), interval_text(low, high)) if value == value else ("–", "")
         for value, low, high in zip(*row, strict=True)]
        for row in zip(*cells, strict=True)
    ]  # fmt: skip
    labels, columns = (_labels(result[name], str(dim)) for dim in (along, group))
    units = str(result[name].attrs.get("units", ""))
    return {
        "title": str(result[name].attrs.get("long_name", name)) + (f", {units}" if units else ""),
        "head": [str(along), *columns],
        "rows": list(zip(labels, rows, strict=True)),
    }


def _labels(array: xr.DataArray, dim: str) -> list[str]:
    return list(map(str, array[dim].values if dim in array.coords else range(array.sizes[dim])))


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


def _heads(name: str, result: xr.Dataset) -> tuple[list[str], list[list[tuple[str, str]]]]:
    """Return the scores of all heads, with intervals: titles and rows; none of too many heads."""
    scores = list(collect({name: result}).values())
    if not scores or scores[0].array.size > LISTED:
        return [], []
    titles = ["Head", *(score.title.rstrip(".") for score in scores)]
    grid = indexed(scores[0].array)
    rows = []
    for layer in range(grid.sizes["layer"]):
        for head in range(grid.sizes["head"]):
            label = viz.head_name(int(grid["layer"][layer]), int(grid["head"][head]))
            cells = [(label, "")]
            for score in scores:
                ends = [end for end in (score.lower, score.upper) if end is not None]
                interval = interval_text(*(end[layer, head] for end in ends)) if ends else ""
                cells.append((viz.amount(score.array[layer, head]), interval))
            rows.append(cells)
    return titles, rows

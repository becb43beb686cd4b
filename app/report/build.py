"""The report of a run: one HTML file that opens anywhere, with tables beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from headscope import analyses
from headscope.app.exports import tables
from headscope.app.report import head_kinds, page, sections
from headscope.app.report.answer import answer
from headscope.app.report.findings import findings, records
from headscope.kernels.errors import InvalidInput
from headscope.probes.storage.dataset_file import replacing
from headscope.probes.storage.run_folder import REPORT

if TYPE_CHECKING:
    from headscope.probes.storage.run_folder import Run

# Larger variables are in the run folder; in a JSON file they would only be in the way.
INLINE = 20_000


def write_report(run: Run, out: Path | None = None) -> Path:
    """Write the report of a run into a folder, its own without one: all of its files, or none.

    Returns
    -------
    The path of ``report.html``. Beside it stand ``heads.csv`` and ``heads.parquet`` (one row a
    head, one column a score), ``heads.schema.json`` (what each column is), ``scores.csv`` and
    ``scores.parquet`` (one row a head and score, with what the number is) and ``report.json``
    (findings, results and provenance).
    """
    results = run.results()
    if not results:
        raise InvalidInput(f"run: {run.path} has no results; headscope analyze {run.path}")
    names = [name for name in analyses.names() if name in results]
    ordered = {name: results[name] for name in (*names, *(set(results) - set(names)))}
    more = f"headscope analyze {run.path} importance && headscope report {run.path}"
    return write_files(run.path if out is None else out, run.manifest, ordered, run.name, more=more)


def write_files(
    folder: Path,
    manifest: Mapping[str, Any],
    results: Mapping[str, xr.Dataset],
    name: str,
    *,
    more: str = "",
    plotly_address: str | None = None,
) -> Path:
    """Write the report of results that are in memory, into a folder that exists.

    ``name`` is that of the run, ``more`` the command that measures importance where the results
    lack it. ``plotly_address`` is that of a plotly.js that reports share; without it the file holds
    it.
    """
    structure = {"run": name, "columns": tables.columns(results)}
    contents = {
        "report.html": html(manifest, results, name, more, plotly_address).encode(),
        "heads.schema.json": _json(structure),
        "report.json": _json(machine_readable(manifest, results)),
    }
    for kind in ("csv", "parquet"):
        for table, wide in (("heads", True), ("scores", False)):
            contents[f"{table}.{kind}"] = tables.encode(kind, results, manifest, name, wide=wide)
    with ExitStack() as stack:
        paths = {file: Path(stack.enter_context(replacing(folder / file))) for file in REPORT}
        for file, content in contents.items():
            paths[file].write_bytes(content)
    return folder / "report.html"


def html(
    manifest: Mapping[str, Any],
    results: Mapping[str, xr.Dataset],
    name: str,
    more: str = "",
    plotly_address: str | None = None,
    *,
    files: bool = True,
) -> str:
    """Return the page of a report, plotly.js inside or at an address.

    ``files`` tells whether its tables stand beside it.
    """
    families = sections.families(results)
    parts = [part for family in families for part in family["sections"]]
    return page.render(
        "report",
        f"Attention heads of {manifest['model']}",
        [figure for part in parts for key in ("figures", "alike") for figure in part[key]],
        plotly_address,
        made=_origin(manifest),
        answer=answer(results),
        more=more,
        kinds=list(head_kinds.collect(results).values()),
        families=families,
        listed=sections.LISTED,
        name=name,
        files=files,
        manifest=manifest,
    )


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode()


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


def _origin(manifest: Mapping[str, Any]) -> str:
    """Describe in one line what was captured, on which prompts, when."""
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

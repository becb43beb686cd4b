"""Tables of heads as files: CSV, Parquet and JSON, long or wide."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr

from headscope import viz
from headscope.app.exports import long_table
from headscope.app.report.scores import entries, entry_name, heads_table
from headscope.kernels.errors import InvalidInput
from headscope.probes.storage.dataset_file import replacing

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("csv", "parquet", "json")
LABELS = {"csv": "CSV", "parquet": "Parquet", "json": "JSON"}
MEANING = ("units", "n", "evidence", "convention", "task")


def wide_table(
    results: Mapping[str, xr.Dataset], manifest: Mapping[str, Any], run: str
) -> pa.Table:
    """Return one row a head and one column a score, as `heads_table` does.

    Columns ``model``, ``revision`` and ``run`` tell the rows of several files apart. What a column
    is (units, n, evidence, convention) is metadata of its field.
    """
    about = {"model": manifest["model"], "revision": manifest["revision"], "run": run}
    return labelled(heads_table(results), columns(results), about)


def labelled(
    table: pd.DataFrame, meanings: Mapping[str, Mapping[str, Any]], about: Mapping[str, str]
) -> pa.Table:
    """Prepend the columns that are constant, and describe each column in its field."""
    import pyarrow as pa

    table = pd.concat([pd.DataFrame(dict(about), index=table.index), table], axis=1)
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    fields = [
        field.with_metadata({key: str(value) for key, value in meanings[field.name].items()})
        if field.name in meanings
        else field
        for field in arrow.schema
    ]
    return arrow.cast(pa.schema(fields, metadata=arrow.schema.metadata))


def columns(results: Mapping[str, xr.Dataset]) -> dict[str, dict[str, Any]]:
    """Return what every column of the wide table is: its title, units, n, evidence, convention.

    >>> mass = xr.DataArray([[0.1]], dims=("layer", "head"), attrs={"units": "share"})
    >>> columns({"sinks": xr.Dataset({"sink": mass})})["sinks.sink"]["units"]
    'share'
    """
    described = {}
    for analysis, result in results.items():
        for name, array in result.items():
            # The end of an interval is measured as its variable is.
            meaning = long_table.meaning(result, str(array.attrs.get("interval_of", name)))
            title = str(array.attrs.get("long_name", name))
            about = {"title": title, **{key: meaning[key] for key in MEANING if meaning[key]}}
            for entry, _ in entries(array):
                described[entry_name(analysis, str(name), entry)] = about
    return described


def encode(
    kind: str,
    results: Mapping[str, xr.Dataset],
    manifest: Mapping[str, Any],
    run: str,
    *,
    wide: bool = False,
) -> bytes:
    """Return a table of the heads as the content of a file of this kind.

    JSON holds the manifest of the run, what the columns of a wide table are, and the rows.
    """
    table = wide_table(results, manifest, run) if wide else long_table.rows(results, run)
    about = {"run": dict(manifest), **({"columns": columns(results)} if wide else {})}
    return encode_table(kind, table, about)


def encode_table(kind: str, table: pa.Table, about: Mapping[str, Any]) -> bytes:
    """Return a table as the content of a file of this kind; JSON holds ``about``, then the rows."""
    import pyarrow.parquet as pq

    if kind == "parquet":
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        return buffer.getvalue()
    frame = table.to_pandas()
    if kind == "csv":
        return bytes(frame.to_csv(index=False).encode())
    rows = json.loads(frame.to_json(orient="records", double_precision=15))
    return json.dumps({**about, "heads": rows}, indent=1, ensure_ascii=False).encode()


def write(
    out: Path,
    results: Mapping[str, xr.Dataset],
    manifest: Mapping[str, Any],
    run: str,
    *,
    wide: bool = False,
) -> None:
    """Write a table of the heads into a file; its ending says the kind."""
    kind = out.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        raise InvalidInput(f"out: {out.name!r} must end in .{', .'.join(FORMATS)}")
    if not any(viz.variables(result) for result in results.values()):
        raise InvalidInput(f"run: {run} has no results; headscope analyze {run}")
    content = encode(kind, results, manifest, run, wide=wide)
    with replacing(out) as temporary:
        Path(temporary).write_bytes(content)

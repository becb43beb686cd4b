"""The long table: a row a head and variable, which says by itself what its number is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr

from headscope import viz
from headscope.app.report.scores import column, entries

if TYPE_CHECKING:
    import pyarrow as pa

NUMBERS = ("value", "lower", "upper")
PROVENANCE = ("model", "task", "revision", "prompts_sha256", "dtype", "options", "headscope")


def schema() -> pa.Schema:
    """Return the columns of the table."""
    import pyarrow as pa

    text = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [
            *((name, text) for name in ("analysis", "variable", "entry")),
            ("layer", pa.int32()),
            ("head", pa.int32()),
            ("name", pa.string()),
            *((name, pa.float64()) for name in NUMBERS),
            ("units", text),
            ("n", pa.int64()),
            *((name, text) for name in ("evidence", "convention", "run", *PROVENANCE)),
        ]
    )


def rows(results: Mapping[str, xr.Dataset], run: str) -> pa.Table:
    """Tabulate the scores of heads in the results of a run, one row each.

    Columns ``analysis``, ``variable``, ``entry`` (its place along further dims, or ""), ``layer``,
    ``head``, ``name`` (``L5H1``), ``value`` and the ends ``lower`` and ``upper`` of its 95 %
    interval (null where there is none, and where a head was not measured), ``units``, ``n``
    (prompts), ``evidence`` (``causal`` or ``correlational``), ``convention``, ``run`` and the
    provenance. In the order of the results, then by layer and head.

    >>> mass = xr.DataArray([[0.1, 0.9]], dims=("layer", "head"), attrs={"units": "share"})
    >>> rows({"sinks": xr.Dataset({"sink": mass})}, "r").select(["name", "value"]).to_pylist()
    [{'name': 'L0H0', 'value': 0.1}, {'name': 'L0H1', 'value': 0.9}]
    """
    import pyarrow as pa

    frames = [
        pd.DataFrame(numbers).reset_index().assign(**meaning, run=run)
        for analysis, result in results.items()
        for numbers, meaning in _scores(analysis, result)
    ]
    names = schema().names
    empty = pd.DataFrame(columns=names)
    table = pd.concat([frame.reindex(columns=names) for frame in frames] or [empty])
    table["name"] = list(map(viz.head_name, table["layer"], table["head"]))
    arrays = [pa.array(table[kind.name], kind.type, from_pandas=True) for kind in schema()]
    return pa.table(arrays, schema=schema())


def _scores(analysis: str, result: xr.Dataset) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the numbers of every score of a result, and what each row says of them."""
    scores = []
    for variable in viz.variables(result):
        array = result[variable]
        if array.dtype.kind not in "fiub":
            continue
        ends = dict(zip(NUMBERS, (array, *viz.interval(result, variable)), strict=True))
        for entry, index in entries(array):
            numbers = {
                name: column(name, end.isel(index)) for name, end in ends.items() if end is not None
            }
            where = {"analysis": analysis, "variable": variable, "entry": entry}
            scores.append((numbers, where | meaning(result, variable)))
    return scores


def meaning(result: xr.Dataset, variable: str) -> dict[str, Any]:
    """Return how a variable of a result is measured, on how many prompts of which model."""
    attrs = result[variable].attrs
    return {
        "units": str(attrs.get("units", "")),
        "n": result.attrs.get("n_prompts"),
        "evidence": str(attrs.get("evidence", "correlational")),
        "convention": _text(attrs.get("convention", result.attrs.get("convention"))),
        **{name: _text(result.attrs.get(name)) for name in PROVENANCE},
    }


def _text(value: Any) -> str:
    """Write a value as text, "" where there is none."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)

"""The numbers of one cell as a table, one row a head and metric."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr

from headscope import viz
from headscope.app.report.scores import column, entries

if TYPE_CHECKING:
    import pyarrow as pa

NUMBERS = ("value", "lower", "upper")
PROVENANCE = ("revision", "prompts_sha256", "dtype", "options", "headscope")


def schema() -> pa.Schema:
    """Return the columns of the table; model, task, analysis and seed are folders."""
    import pyarrow as pa

    text = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [
            ("layer", pa.int32()),
            ("head", pa.int32()),
            ("name", pa.string()),
            ("metric", text),
            ("entry", text),
            *((name, pa.float64()) for name in NUMBERS),
            ("units", text),
            ("convention", text),
            ("evidence", text),
            ("n", pa.int64()),
            ("cell", text),
            *((name, text) for name in PROVENANCE),
        ]
    )


def rows(result: xr.Dataset, cell: str) -> pa.Table:
    """Lay the scores of heads in a result of a cell out as rows; the rest stays in the result.

    Columns ``layer``, ``head``, ``name`` (``L5H1``), ``metric`` (the variable), ``entry`` (its
    place along further dims, or ""), ``value`` and the ends ``lower`` and ``upper`` of its 95 %
    interval (null where there is none, and where a head was not measured), ``units``,
    ``convention``, ``evidence`` (``causal`` or ``correlational``), ``n`` (prompts), and the
    provenance. Sorted by metric, entry, layer and head, in the order of the result.

    >>> mass = xr.DataArray([[0.1, 0.9]], dims=("layer", "head"), attrs={"units": "share"})
    >>> rows(xr.Dataset({"sink": mass}), "c0").select(["name", "value"]).to_pylist()
    [{'name': 'L0H0', 'value': 0.1}, {'name': 'L0H1', 'value': 0.9}]
    """
    import pyarrow as pa

    frames = [pd.DataFrame(columns=schema().names)]
    for metric in viz.variables(result):
        array = result[metric]
        if array.dtype.kind not in "fiub":
            continue
        ends = dict(zip(NUMBERS, (array, *viz.interval(result, metric)), strict=True))
        for entry, place in entries(array):
            numbers = {
                name: column(name, end.isel(place)) for name, end in ends.items() if end is not None
            }
            frames.append(
                pd.DataFrame(numbers)
                .reset_index()
                .assign(
                    metric=metric,
                    entry=entry,
                    units=str(array.attrs.get("units", "")),
                    convention=_text(array.attrs.get("convention", result.attrs.get("convention"))),
                    evidence=str(array.attrs.get("evidence", "correlational")),
                    n=result.attrs.get("n_prompts"),
                    cell=cell,
                    **{name: _text(result.attrs.get(name)) for name in PROVENANCE},
                )
            )
    table = pd.concat([frame.reindex(columns=schema().names) for frame in frames[1:] or frames])
    table["name"] = list(map(viz.head_name, table["layer"], table["head"]))
    arrays = [pa.array(table[kind.name], kind.type, from_pandas=True) for kind in schema()]
    return pa.table(arrays, schema=schema())


def _text(value: Any) -> str:
    """Write a value as text, "" where there is none."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)

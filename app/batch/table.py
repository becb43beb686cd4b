"""Table: the numbers of one cell, one row a head and metric."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from headscope import viz
from headscope.app.report.scores import GRID, entries

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
    """Lay the scores of heads in a result out as rows; curves and matrices stay in the result.

    Parameters
    ----------
    result
        Result of an analysis.
    cell
        Id of the cell that it belongs to.

    Returns
    -------
    Columns ``layer``, ``head``, ``name`` (``L5H1``), ``metric`` (the variable), ``entry`` (its
    place along further dims, or ""), ``value`` and the ends ``lower`` and ``upper`` of its 95 %
    interval (null where there is none, and where a head was not measured), ``units``,
    ``convention``, ``evidence`` (``causal`` or ``correlational``), ``n`` (prompts), and the
    provenance: ``cell``, ``revision``, ``prompts_sha256``, ``dtype``, ``options``, ``headscope``.
    Sorted by metric, entry, layer and head, in the order of the result.

    Examples
    --------
    >>> mass = xr.DataArray([[0.1, 0.9]], dims=("layer", "head"), attrs={"units": "share"})
    >>> rows(xr.Dataset({"sink": mass}), "c0").select(["name", "value"]).to_pylist()
    [{'name': 'L0H0', 'value': 0.1}, {'name': 'L0H1', 'value': 0.9}]
    """
    import pyarrow as pa

    columns: dict[str, list[Any]] = {name: [] for name in schema().names}
    said = {name: _text(result.attrs.get(name)) for name in PROVENANCE}
    for metric in viz.variables(result):
        array = result[metric]
        if array.dtype.kind not in "fiub":
            continue
        lower, upper = viz.interval(result, metric)
        for entry, place in entries(array):
            _add(columns, (array, lower, upper), place, {
                "metric": metric,
                "entry": entry,
                "units": str(array.attrs.get("units", "")),
                "convention": _text(array.attrs.get("convention", result.attrs.get("convention"))),
                "evidence": str(array.attrs.get("evidence", "correlational")),
                "n": result.attrs.get("n_prompts"),
                "cell": cell,
                **said,
            })  # fmt: skip
    made = {}
    for kind in schema():
        values: Any = columns[kind.name]
        if kind.name in NUMBERS:
            values = np.asarray(values, dtype=np.float64)
        made[kind.name] = pa.array(values, kind.type, from_pandas=True)
    return pa.table(made, schema=schema())


def _add(
    columns: dict[str, list[Any]],
    arrays: tuple[xr.DataArray, xr.DataArray | None, xr.DataArray | None],
    place: Mapping[str, int],
    same: Mapping[str, Any],
) -> None:
    """Add one row a head."""
    first = arrays[0]
    labels = {
        dim: first[dim].values.tolist() if dim in first.coords else list(range(first.sizes[dim]))
        for dim in GRID
    }
    grids = [
        None if one is None else np.asarray(one.isel(place).transpose(*GRID).values, dtype=float)
        for one in arrays
    ]
    for at, layer in enumerate(labels["layer"]):
        for beside, head in enumerate(labels["head"]):
            row = {"layer": layer, "head": head, "name": viz.head_name(layer, head), **same}
            for name, grid in zip(NUMBERS, grids, strict=True):
                row[name] = np.nan if grid is None else grid[at, beside]
            for name, value in row.items():
                columns[name].append(value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)

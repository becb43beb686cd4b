"""A short table: the heads of the largest score, with other scores beside it."""

import numpy as np
import pandas as pd
import xarray as xr

from headscope.kernels.errors import InvalidInput
from headscope.viz._labels import head_name
from headscope.viz._scale import finite, ranks


def top(
    dataset: xr.Dataset, name: str, *beside: str | xr.DataArray, number: int = 5
) -> pd.DataFrame:
    """List the heads of the largest score, a row a head, with its interval and other numbers.

    Parameters
    ----------
    dataset
        A result of an analysis.
    name
        The variable that ranks the heads, dims layer and head (or kv_head); where its sign means
        something, by the distance from 0.
    *beside
        What stands in the same row: other variables of the dataset by name, or arrays of other
        results, for example the causal number beside a score.
    number
        How many heads, at most; heads without a value are left out.

    Returns
    -------
    pandas.DataFrame
        One row a head, named as in ``L5H1``; a column a variable, followed by ``<name>_lower`` and
        ``<name>_upper`` where it has an interval. Units are in ``dataset[name].attrs``.

    Examples
    --------
    >>> sink = xr.DataArray([[0.1, 0.9], [0.5, 0.2]], dims=("layer", "head"))
    >>> cost = xr.DataArray([[0.0, 0.3], [0.0, 0.1]], dims=("layer", "head"), name="cost")
    >>> top(xr.Dataset({"sink": sink}), "sink", cost, number=2)
          sink  cost
    L0H1   0.9   0.3
    L1H0   0.5   0.0
    """
    column = "kv_head" if name in dataset and "kv_head" in dataset[name].dims else "head"
    dims = ("layer", column)
    columns: dict[str, np.ndarray] = {}
    for score in (name, *beside):
        array = score if isinstance(score, xr.DataArray) else _variable(dataset, score)
        if set(array.dims) != set(dims):
            raise InvalidInput(
                f"top: {array.name} has dims {array.dims}; average or select until it is {dims}"
            )
        columns[str(array.name)] = finite(array.transpose(*dims))
        if isinstance(score, str):
            for side in ("lower", "upper"):
                if f"{score}_{side}" in dataset:
                    bound = dataset[f"{score}_{side}"]
                    columns[f"{score}_{side}"] = finite(bound.transpose(*dims))
    ranking = dataset[name].transpose(*dims)
    letter = "H" if column == "head" else "KV"
    layers, heads = (
        ranking[dim].values if dim in ranking.coords else range(ranking.sizes[dim]) for dim in dims
    )
    labels = [head_name(layer, head, letter) for layer in layers for head in heads]
    table = pd.DataFrame({label: values.ravel() for label, values in columns.items()}, index=labels)
    order = np.argsort(ranks(ranking).ravel(), kind="stable")
    indices = [at for at in order if np.isfinite(columns[name].ravel()[at])]
    return table.iloc[indices[:number]]


def _variable(dataset: xr.Dataset, name: str) -> xr.DataArray:
    if name not in dataset:
        available = ", ".join(str(variable) for variable in dataset.data_vars)
        raise InvalidInput(f"top: no variable {name!r}; use one of {available}")
    return dataset[name]

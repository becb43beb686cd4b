"""Patches: values over the patches of an image, as they lie in it."""

import re
from typing import Any

import numpy as np
import xarray as xr

from headscope.kernels.formatting import MISSING
from headscope.viz._frame import Bound, frame, heatmap, missing
from headscope.viz._labels import measured, units
from headscope.viz._scale import finite

PATCH = re.compile(r"r(\d+)c(\d+)")


def accepts(array: xr.DataArray) -> bool:
    """Accept values over the rows and columns of patches."""
    return array.dtype.kind in "fiub" and set(array.dims) == {"row", "column"}


def lay(array: xr.DataArray) -> xr.DataArray:
    """Arrange values along the tokens of an image, named r0c0, r0c1, ..., as its patches.

    The dims become row and column; the attr ``beside`` holds the values of tokens that are no
    patch.

    >>> names = ["[CLS]", "r0c0", "r0c1"]
    >>> laid = lay(xr.DataArray([0.5, 0.2, 0.3], dims="key", coords={"token": ("key", names)}))
    >>> laid.values.tolist(), laid.attrs["beside"]
    ([[0.2, 0.3]], {'[CLS]': 0.5})
    """
    values = finite(array)
    values_at: dict[tuple[int, int], float] = {}
    beside: dict[str, float] = {}
    for word, value in zip(map(str, array["token"].values.tolist()), values.tolist(), strict=True):
        match = PATCH.fullmatch(word)
        if match is None:
            beside[word] = value
        else:
            values_at[int(match[1]), int(match[2])] = value
    laid = np.full((np.max(list(values_at), axis=0) + 1).tolist(), np.nan)
    laid[tuple(zip(*values_at, strict=True))] = list(values_at.values())
    return xr.DataArray(
        laid, dims=("row", "column"), name=array.name, attrs={**array.attrs, "beside": beside}
    )


def figure(
    array: xr.DataArray, *, lower: Bound = None, upper: Bound = None, fit: bool = False
) -> Any:
    """Draw one cell a patch, as the patches lie in the image.

    The array has the dims row and column, from the upper left corner. The attr ``beside`` may hold
    values of tokens that are no patch; they are written below the title.
    """
    array = array.transpose("row", "column")
    values = finite(array)
    beside = array.attrs.get("beside", {})
    notes = [f"{word}: {measured(value, units(array))}" for word, value in beside.items()]
    if not np.isfinite(values).all():
        notes.append(f"grey: {MISSING}")
    rows, columns = values.shape
    fig = frame(
        array,
        height=120 + min(max(28 * rows, 240), 520),
        notes=notes,
        xaxis={**_axis("column of patches", columns), "constrain": "domain"},
        yaxis={**_axis("row of patches", rows), "autorange": "reversed", "scaleanchor": "x"},
        showlegend=False,
    )
    cells = heatmap(array, values.astype(np.float32), fit, "r%{y}c%{x}")
    fig.add_traces([missing(values), cells])
    return fig


def _axis(name: str, count: int) -> dict[str, Any]:
    step = max(1, -(-count // 16))
    return {"title": {"text": name}, "dtick": step, "showgrid": False, "zeroline": False}

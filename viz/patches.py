"""Patches: values over the patches of an image, as they lie in it."""

import re
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from headscope.viz._frame import Bound, colour_bar, coloured, frame, missing
from headscope.viz._labels import MISSING, measured, title, units
from headscope.viz._scale import finite, scale

PLACE = re.compile(r"r(\d+)c(\d+)")


def accepts(array: xr.DataArray) -> bool:
    """Accept values over the rows and columns of patches."""
    return array.dtype.kind in "fiub" and set(array.dims) == {"row", "column"}


def lay(array: xr.DataArray) -> xr.DataArray:
    """Lay values along the tokens of an image, whose names are r0c0, r0c1, ..., over its patches.

    The dims become row and column; the attr ``beside`` holds the values of tokens that are no
    patch.

    Examples
    --------
    >>> names = ["[CLS]", "r0c0", "r0c1"]
    >>> laid = lay(xr.DataArray([0.5, 0.2, 0.3], dims="key", coords={"token": ("key", names)}))
    >>> laid.values.tolist(), laid.attrs["beside"]
    ([[0.2, 0.3]], {'[CLS]': 0.5})
    """
    values = finite(array)
    found = [PLACE.fullmatch(str(word)) for word in array["token"].values.tolist()]
    places = [(int(one[1]), int(one[2])) if one else None for one in found]
    known = [place for place in places if place is not None]
    size = [1 + max(place[side] for place in known) for side in (0, 1)]
    laid = np.full(size, np.nan)
    beside: dict[str, float] = {}
    for word, place, value in zip(array["token"].values, places, values.tolist(), strict=True):
        if place is None:
            beside[str(word)] = value
        else:
            laid[place] = value
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
    fig.add_trace(missing(values))
    fig.add_trace(
        go.Heatmap(
            z=values.astype(np.float32),
            hovertemplate=(
                f"r%{{y}}c%{{x}}<br>{title(array)}: %{{z:.4g}} {units(array)}<extra></extra>"
            ),
            colorbar=colour_bar(array),
            **coloured(scale(array, fit)),
        )
    )
    return fig


def _axis(name: str, count: int) -> dict[str, Any]:
    step = max(1, -(-count // 16))
    return {"title": {"text": name}, "dtick": step, "showgrid": False, "zeroline": False}

"""Colours: which scale a variable is drawn in, and over which range."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr

Array = npt.NDArray[np.float64]

SEQUENTIAL = "Viridis"
# Blue to orange stays apart for every common kind of colour blindness; red to green does not.
DIVERGING = [
    [0.0, "#1f5fa8"],
    [0.25, "#85b4dd"],
    [0.5, "#f5f5f2"],
    [0.75, "#f2ac60"],
    [1.0, "#b65a00"],
]
NEGATIVE, POSITIVE = "#3f7fc4", "#d9822b"
GREY = "#9aa0a6"
# Okabe and Ito's colours, which every common kind of colour blindness tells apart.
DISTINCT = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
SIDES = {"low", "high"}


@dataclass(frozen=True)
class Scale:
    """A colour scale and the range it spans."""

    colours: object
    low: float
    high: float


def finite(array: xr.DataArray) -> Array:
    """Return the values as float64, with everything that is not a number missing."""
    values = np.asarray(array.values, dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def diverges(array: xr.DataArray) -> bool:
    """Return whether the sign of the variable means something."""
    return array.attrs.get("scale") == "diverging"


def scale(array: xr.DataArray, fit: bool = False) -> Scale:
    """Choose colours and range from the attributes of a variable.

    Sequential variables span ``low`` to ``high``, diverging ones are centred on 0. A bound that
    the variable does not declare is taken from its values, and so are all with `fit`.

    >>> rate = xr.DataArray([0.2, 0.4], attrs={"scale": "sequential", "low": 0.0, "high": 1.0})
    >>> scale(rate).high, scale(rate, fit=True).high
    (1.0, 0.4)
    >>> effect = xr.DataArray([-3.0, 1.0], attrs={"scale": "diverging"})
    >>> scale(effect).low, scale(effect).high
    (-3.0, 3.0)
    """
    values = finite(array)
    finite_values = values[np.isfinite(values)]
    least, most = (
        (float(finite_values.min()), float(finite_values.max()))
        if finite_values.size
        else (0.0, 1.0)
    )
    declared = (
        {} if fit else {side: float(array.attrs[side]) for side in SIDES & array.attrs.keys()}
    )
    if diverges(array):
        bounds = [abs(bound) for bound in declared.values()]
        reach = max(bounds or [abs(least), abs(most)]) or 1.0
        return Scale(DIVERGING, -reach, reach)
    low, high = declared.get("low", least), declared.get("high", most)
    return Scale(SEQUENTIAL, low, high if high > low else low + 1.0)


def ranks(array: xr.DataArray) -> Array:
    """Rank the values, 1 for the largest; diverging ones by how far they are from 0.

    Equal values share the better rank, missing ones have none (NaN).

    >>> ranks(xr.DataArray([0.5, 0.9, 0.5, float("nan")])).tolist()
    [2.0, 1.0, 2.0, nan]
    """
    values = finite(array)
    size = np.abs(values) if diverges(array) else values
    present = np.sort(size[np.isfinite(size)])
    result = present.size - np.searchsorted(present, size, side="right") + 1.0
    return np.where(np.isfinite(size), result, np.nan)

"""Head grid: one square cell a head, layers down, its score in colour."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from headscope.kernels.errors import InvalidInput
from headscope.viz._labels import absent
from headscope.viz._scale import diverges, finite, scale
from headscope.viz.component.view import View, attribute, packed

HEADS = {"head": "H", "kv_head": "KV"}


def head_grid(
    array: xr.DataArray,
    *,
    lower: xr.DataArray | None = None,
    upper: xr.DataArray | None = None,
    fit: bool = False,
    picked: tuple[int, int] | None = None,
    shown: npt.NDArray[np.bool_] | None = None,
) -> View:
    """Draw a score of every head, for models of any size.

    A head that was not measured is hatched. Hovering a head shows its name, value, interval and
    rank; arrow keys move, Enter picks.

    Parameters
    ----------
    array
        The score, dims layer and head (or kv_head).
    lower, upper
        The ends of its intervals.
    fit
        Spread the colours over the values instead of over the range of the score.
    picked
        Indices (layer, head) of the head to outline.
    shown
        Which heads (layer, head) to show in full; the others fade. None is all.

    Examples
    --------
    >>> rate = xr.DataArray([[0.1, float("nan")]], dims=("layer", "head"), attrs={"high": 1.0})
    >>> view = head_grid(rate)
    >>> view.data["layers"], view.data["heads"], view.data["high"]
    (['0'], ['0', '1'], 1.0)
    """
    if len(array.dims) != 2 or "layer" not in array.dims or not HEADS.keys() & set(array.dims):
        raise InvalidInput(f"array: a head grid has dims layer and head, not {array.dims}; select")
    column = next(dim for dim in HEADS if dim in array.dims)
    array = array.transpose("layer", column)
    chosen = scale(array, fit)
    sides = {
        name: None if side is None else packed(finite(side.transpose("layer", column)), "<f8")
        for name, side in (("lower", lower), ("upper", upper))
    }
    return View(
        "heads",
        {
            **head_axes(array, picked, shown),
            **sides,
            "title": attribute(array, "long_name", str(array.name or "value")),
            "units": attribute(array, "units"),
            "values": packed(finite(array), "<f8"),
            "colours": _stops(chosen.colours),
            "low": chosen.low,
            "high": chosen.high,
            "diverging": diverges(array),
        },
    )


def head_axes(
    array: xr.DataArray,
    picked: Sequence[int] | None,
    shown: npt.NDArray[np.bool_] | None,
) -> dict[str, Any]:
    """Return the layers and heads of an array, and which layers have no attention map."""
    column = next(dim for dim in HEADS if dim in array.dims)
    labels = {
        dim: list(map(str, array[dim].values.tolist() if dim in array.coords else range(size)))
        for dim, size in ((dim, array.sizes[dim]) for dim in ("layer", column))
    }
    return {
        "layers": labels["layer"],
        "heads": labels[column],
        "letter": HEADS[column],
        "absent": [at for at, lacks in enumerate(absent(array)) if lacks],
        "picked": None if picked is None else list(map(int, picked)),
        "shown": None if shown is None else packed(shown, "u1"),
    }


def _stops(colours: Any) -> list[list[int]]:
    """List the colours of a scale at even steps, as red, green and blue."""
    from plotly.colors import get_colorscale, hex_to_rgb

    listed = get_colorscale(colours) if isinstance(colours, str) else colours
    return [list(hex_to_rgb(colour)) for _, colour in listed]

"""Thumbnails: the pattern of every head on one prompt, small, layers down."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import xarray as xr

from headscope.kernels.errors import InvalidInput
from headscope.viz._labels import head_name
from headscope.viz._scale import finite
from headscope.viz.component.head_grid import head_axes
from headscope.viz.component.view import View, attribute, packed

# Cells a side of a small pattern, at most.
SIDE = 32


def thumbnails(
    maps: xr.DataArray,
    *,
    picked: tuple[int, int] | None = None,
    shown: npt.NDArray[np.bool_] | None = None,
) -> View:
    """Draw the patterns of all heads side by side, as many cells a side as 32 allows.

    A cell is the largest weight that it covers, as one byte: the square root of its share of the
    largest possible weight, so that small weights are seen; 0 is exactly 0.

    Parameters
    ----------
    maps
        Patterns of one prompt, dims layer, head and query, key (or query_tile, key_tile), such as
        ``capture["pooled_max"].isel(prompt=0)``.
    picked
        Indices (layer, head) of the head to outline.
    shown
        Which heads (layer, head) to show in full; the others fade. None is all.

    Examples
    --------
    >>> maps = xr.DataArray(np.eye(64)[None, None], dims=("layer", "head", "query", "key"))
    >>> thumbnails(maps).data["map_shape"]
    [32, 32]
    """
    values = trimmed(in_order(maps))
    low, high = float(np.nanmin(values)), float(maps.attrs.get("high") or np.nanmax(values)) or 1.0
    if low < 0:
        raise InvalidInput(f"maps: thumbnails show weights of 0 or more, not {low:g}")
    small = np.nan_to_num(_pooled(_pooled(values, -1), -2))
    codes = np.ceil(255 * np.sqrt(np.clip(small / high, 0, 1)))
    return View(
        "heads",
        {
            **head_axes(maps, picked, shown),
            "title": attribute(maps, "long_name", "Attention patterns"),
            "units": attribute(maps, "units"),
            "maps": packed(codes, "u1"),
            "map_shape": list(codes.shape[-2:]),
            "high": high,
        },
    )


def thumbnail_row(
    maps: xr.DataArray, heads: Sequence[tuple[int, int]], picked: int | None = None
) -> View:
    """Draw the patterns of some heads, by their indices in the maps, in one row.

    >>> maps = xr.DataArray(np.eye(4)[None, None], dims=("layer", "head", "query", "key"))
    >>> thumbnail_row(maps, [(0, 0), (0, 0)]).data["names"]
    ['L0H0', 'L0H0']
    """
    ordered = in_order(maps)
    chosen = np.stack([ordered.values[layer, head] for layer, head in heads])[None]
    row = xr.DataArray(chosen, dims=ordered.dims, attrs=maps.attrs)
    view = thumbnails(row, picked=None if picked is None else (0, picked))
    names = [head_name(layer, head) for layer, head in heads]
    return replace(view, data={**view.data, "names": names})


def in_order(maps: xr.DataArray) -> xr.DataArray:
    """Transpose to layer, head, query, key; refuse other dims."""
    dims = set(map(str, maps.dims))
    for sides in (("query", "key"), ("query_tile", "key_tile")):
        if dims == {"layer", "head", *sides}:
            return maps.transpose("layer", "head", *sides)
    raise InvalidInput(
        f"maps: patterns of heads have dims layer, head, query, key (or tiles), not {maps.dims}; "
        "select one prompt"
    )


def trimmed(maps: xr.DataArray) -> npt.NDArray[np.float64]:
    """Return the values without the padding at the end, where no head has any."""
    values = finite(maps)
    present = np.asarray(np.isfinite(values).any(axis=(0, 1)))
    if not present.any():
        raise InvalidInput("maps: no head has a value")
    rows, columns = (np.flatnonzero(present.any(axis=axis))[-1] + 1 for axis in (1, 0))
    return values[..., :rows, :columns]


def _pooled(values: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
    """Return the largest of each block along an axis."""
    block = -(-values.shape[axis] // SIDE)
    starts = np.arange(0, values.shape[axis], block)
    return np.asarray(np.fmax.reduceat(values, starts, axis=axis))

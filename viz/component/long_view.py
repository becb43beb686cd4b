"""Long view: the whole pattern of one head in blocks, and a window of it that is drawn exactly."""

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from headscope.kernels.errors import InvalidInput
from headscope.viz._labels import head_name
from headscope.viz._scale import Array, finite
from headscope.viz.component.token_view import codes, token_view
from headscope.viz.component.view import View, packed

# Blocks a side of the whole, at most, and tokens a side of a window.
SIDE, WIDEST = 256, 512
MAPS = ("pooled_max", "pooled_mean")
TILES = ("query_tile", "key_tile")


def long_view(
    overview: xr.Dataset, *, window: xr.DataArray | None = None, state: dict[str, Any] | None = None
) -> View:
    """Draw a pattern of a long text: in blocks, with one window in full.

    Every block is the largest weight in it, or the mean mass that its queries send to its keys.
    Below is the weight that each key receives, at the right the entropy of each query. Words of the
    text are found and marked on both sides; a window of at most 512 × 512 tokens is chosen by
    dragging, by keys, around a word that was found, around a part of the task's prompt, or around a
    block.

    Parameters
    ----------
    overview
        Statistics of one head on one prompt: ``pooled_max`` or ``pooled_mean`` or both, with
        ``received`` and ``entropy`` where they are known, such as
        ``capture.isel(prompt=0, layer=1, head=3)``. More than 256 blocks a side are joined.
    window
        Exact weights of a window, as ``headscope.probes.pattern`` returns them, to draw below.
    state
        How the view opens: ``map`` ("pooled_max", "pooled_mean"), ``find``, the words to search,
        ``queries`` and ``keys``, the first token of the window and the one after its last.

    Examples
    --------
    >>> pooled = (("query_tile", "key_tile"), np.eye(3))
    >>> found = xr.Dataset({"pooled_max": pooled}, {"token": ("query", list("abcdef"))})
    >>> view = long_view(found.assign_attrs(tile=2))
    >>> view.data["blocks"], view.data["tile"], view.data["length"]
    (3, 2, 6)
    """
    names = [name for name in MAPS if name in overview and set(overview[name].dims) == set(TILES)]
    if not names or "token" not in overview.coords or "tile" not in overview.attrs:
        raise InvalidInput(
            "overview: a long view needs pooled_max or pooled_mean with dims query_tile and "
            "key_tile, the coordinate token and the attribute tile, all of one head and one prompt;"
            " capture(stats=('pooled_max', 'received', 'entropy')) has them, select prompt, layer "
            "and head"
        )
    if overview.attrs.get("attention") == "cross":
        raise InvalidInput("overview: queries and keys are two texts; draw one window of them")
    tokens = list(map(str, overview["token"].values.tolist()))
    length = int(overview["length"]) if "length" in overview.coords else len(tokens)
    tile = int(overview.attrs["tile"])
    count = -(-length // tile)
    join = -(-count // SIDE)
    rows = np.clip(length - np.arange(count) * tile, 0, tile)
    maps = {}
    for name in names:
        values = finite(overview[name].transpose(*TILES))[:count, :count]
        maps[name] = packed(codes(_joined(name, values, rows, join)), "<u2")
    margins = {
        name: _margin(overview, name, length, tile * join) for name in ("received", "entropy")
    }
    view_state = dict(state or {})
    drawn = None if window is None else token_view(window).data
    if drawn is not None:
        sizes = len(drawn["queries"]), len(drawn["keys"] or drawn["queries"])
        ends = zip(("queries", "keys"), drawn["first"], sizes, strict=True)
        view_state = {name: [first, first + size] for name, first, size in ends} | view_state
    _check(view_state, length)
    has_head = {"layer", "head"} <= set(overview.coords)
    name = head_name(*(overview[dim].item() for dim in ("layer", "head"))) if has_head else ""
    return View(
        "long_view",
        {
            "title": f"Attention of {name}" if name else "Attention",
            "length": length,
            "tile": tile * join,
            "blocks": -(-count // join),
            "maps": maps,
            "margins": {side: values for side, values in margins.items() if values is not None},
            "tokens": packed(np.frombuffer(json.dumps(tokens[:length]).encode(), "u1"), "u1"),
            # Words of such tokenizers have no spaces of their own.
            "apart": not any(" " in token for token in tokens),
            "roles": json.loads(str(overview["roles"].item()))
            if "roles" in overview.coords
            else {},
            "window": drawn,
            "state": view_state,
        },
    )


def _joined(name: str, values: Array, rows: npt.NDArray[np.int64], join: int) -> Array:
    """Join blocks: the largest of them, or the mass to all of their keys, averaged over queries."""
    starts = np.arange(0, len(values), join)
    if name == "pooled_max":
        largest = np.fmax.reduceat(np.fmax.reduceat(values, starts, axis=0), starts, axis=1)
        return np.asarray(largest)
    queries = np.where(np.isfinite(values).any(axis=1), rows, 0)[:, None]
    mass = np.add.reduceat(np.add.reduceat(np.nan_to_num(values) * queries, starts), starts, axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(mass / np.add.reduceat(queries, starts))


def _margin(overview: xr.Dataset, name: str, length: int, tile: int) -> str | None:
    """Return the largest weight that a key of each block receives, or its queries' mean entropy."""
    dim = "key" if name == "received" else "query"
    if name not in overview or overview[name].dims != (dim,) or overview.sizes[dim] < length:
        return None
    values, starts = finite(overview[name])[:length], np.arange(0, length, tile)
    if name == "received":
        return packed(codes(np.fmax.reduceat(values, starts)), "<u2")
    counts = np.add.reduceat(np.isfinite(values).astype(float), starts)
    with np.errstate(invalid="ignore"):
        mean = np.add.reduceat(np.nan_to_num(values), starts) / counts
    # An entropy can be a rounding error below 0.
    return packed(codes(np.maximum(mean, 0)), "<u2")


def _check(state: dict[str, Any], length: int) -> None:
    """Refuse a state that the view cannot take."""
    for name, value in state.items():
        if name in ("queries", "keys"):
            start, stop = value
            right = 0 <= start < stop <= length and stop - start <= WIDEST
        else:
            right = value in MAPS if name == "map" else name == "find" and isinstance(value, str)
        if not right:
            raise InvalidInput(
                f"state: no {name!r} of {value!r}; a long view has map ({', '.join(MAPS)}), find "
                f"(text), queries and keys (first token and end, inside {length}, at most "
                f"{WIDEST} tokens)"
            )
    if ("queries" in state) != ("keys" in state):
        raise InvalidInput("state: a window has both queries and keys; give both or none")

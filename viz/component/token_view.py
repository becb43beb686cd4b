"""Token view: what every token attends to, as text, as a map, or as lines."""

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from headscope.kernels.errors import InvalidInput, ResourceLimit
from headscope.viz._labels import head_name, shown_token
from headscope.viz._scale import finite
from headscope.viz.component.thumbnails import in_order, thumbnails, trimmed
from headscope.viz.component.view import View, attribute, packed

MODES = ("Text", "Map", "Lines")
SCALES = ("0–1", "row max", "log")
# Codes a decade: the three significant digits 100 to 999.
DIGITS = 900
SMALLEST, MISSING = 1e-40, 65535
CELLS = 2048 * 2048
# Weights of all heads of a page together, at most: some 100 MB of HTML.
WEIGHTS = 64_000_000


def token_view(pattern: xr.DataArray, *, state: dict[str, Any] | None = None) -> View:
    """Draw attention weights on their tokens, of one head or of a whole layer or model.

    Hovering a token shows what it attends to (solid) and what attends to it (dashed); a click
    locks it. With several heads, small patterns are drawn above, and a click picks one. Weights are
    sent as three significant digits in two bytes, which is what is shown of them; a weight of
    exactly 0, which a query cannot see, is hatched in the map.

    Parameters
    ----------
    pattern
        Weights with dims query and key, as ``headscope.probes.pattern`` returns them, or with dims
        layer, head, query and key, such as ``capture["pattern"].isel(prompt=0)``. Coordinates
        ``token`` and, where keys are another text, ``key_token`` name the tokens.
    state
        How the view opens: ``mode`` ("Text", "Map", "Lines"), ``scale`` ("0–1", "row max", "log"),
        ``hide`` the first token (True, False), ``token``, the index of the locked one.

    Examples
    --------
    >>> tokens = ("query", ["<bos>", " a"])
    >>> weights = xr.DataArray([[1, 0], [0.25, 0.75]], dims=("query", "key"),
    ...                        coords={"token": tokens})
    >>> token_view(weights).data["queries"]
    ['<bos>', '·a']
    """
    several = {"layer", "head"} & set(pattern.dims)
    most = WEIGHTS if several else CELLS
    if pattern.size > most:
        raise ResourceLimit(
            f"pattern: {pattern.size} weights, and a token view shows up to {most} "
            f"of {'several heads' if several else 'one head'}; select heads or a shorter text"
        )
    if not several:
        return View("token_view", _tokens(pattern, state))
    for dim in {"layer", "head"} - several:
        pattern = pattern.expand_dims({dim: [pattern[dim].item() if dim in pattern.coords else 0]})
    pattern = in_order(pattern)
    values = trimmed(pattern)
    shape = values.shape[-2:]
    first = pattern.isel(layer=0, head=0, query=slice(shape[0]), key=slice(shape[1]))
    tokens = _tokens(first, state)
    heads = thumbnails(pattern, picked=(0, 0)).data
    heads["title"] = ""
    flat = values.reshape(-1, *shape)
    return View(
        "attention_heads",
        {
            "heads": heads,
            "tokens": tokens,
            "weights": [packed(codes(weights), "<u2") for weights in flat],
        },
    )


def codes(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.uint16]:
    """Encode weights by their three significant digits: 900 codes a decade, 0 for exactly 0.

    >>> codes(np.array([0.0, 1e-40, 0.25, 1.0, np.nan])).tolist()
    [0, 1, 35251, 36001, 65535]
    """
    present = np.isfinite(weights)
    positive = present & (weights > 0)
    safe = np.where(positive, np.maximum(weights, SMALLEST), 1.0)
    exponents = np.floor(np.log10(safe))
    digits = np.rint(safe / 10.0**exponents * 100)
    # Rounding can reach the next decade, and the logarithm can miss the right one by one.
    powers = np.where(
        digits < 100, exponents - 1, np.where(digits >= 1000, exponents + 1, exponents)
    )
    digits = np.rint(safe / 10.0**powers * 100)
    numbers = np.where(positive, (powers + 40) * DIGITS + digits - 99, 0)
    return np.where(present, numbers, MISSING).astype(np.uint16)


def _tokens(array: xr.DataArray, state: dict[str, Any] | None) -> dict[str, Any]:
    for name, value in (state or {}).items():
        fields: dict[str, tuple[Any, ...]] = {
            "mode": MODES, "scale": SCALES, "hide": (True, False), "token": (value,)
        }  # fmt: skip
        if value not in fields.get(name, ()):
            raise InvalidInput(f"state: no {name!r} of {value!r}; it has {fields}")
    if set(array.dims) != {"query", "key"}:
        raise InvalidInput(
            f"pattern: a token view has dims query and key, not {array.dims}; select one prompt"
        )
    values = finite(array := array.transpose("query", "key"))
    if np.nanmin(values) < 0:
        raise InvalidInput("pattern: a token view shows weights of 0 or more; draw it as a pattern")
    sides = _token_texts(array, "query", "token"), _token_texts(array, "key", "key_token")
    ranges = [
        array[dim].values.tolist() if dim in array.coords else list(range(array.sizes[dim]))
        for dim in ("query", "key")
    ]
    if array.sizes["query"] == array.sizes["key"] and sides[1] in (None, sides[0]):
        crossed = array.attrs.get("attention") == "cross" or ranges[0] != ranges[1]
    else:
        crossed = True
    most = float(array.attrs.get("high") or max(float(np.nanmax(values)), 1.0))
    numbers = [list(map(str, side)) for side in ranges]
    queries = sides[0] or numbers[0]
    return {
        "title": attribute(array, "long_name", _head(array)),
        "units": attribute(array, "units"),
        "queries": queries,
        "keys": (sides[1] or numbers[1]) if crossed else None,
        "first": [int(side[0]) for side in ranges],
        "weights": packed(codes(values), "<u2"),
        "high": most,
        "state": state or {},
    }


def _token_texts(array: xr.DataArray, dim: str, name: str) -> list[str] | None:
    """Return the tokens along a dim, None where they have no names."""
    if name not in array.coords or array[name].dims != (dim,):
        return None
    return [shown_token(token, longest=200) for token in array[name].values.tolist()]


def _head(array: xr.DataArray) -> str:
    has_head = {"layer", "head"} <= set(array.coords)
    return (
        f"Attention of {head_name(*(array[dim].item() for dim in ('layer', 'head')))}"
        if has_head
        else "Attention"
    )

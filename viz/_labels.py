"""How heads, tokens, positions and values are written."""

import html
import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import xarray as xr

from headscope.kernels.formatting import amount

LONGEST = 18
POSITIONS = ("query", "key", "query_tile", "key_tile")
# What a hybrid model's other layers (Mamba, linear attention, convolution) lack.
ABSENT = "no attention map in this layer"


def head_name(layer: object, head: object, kind: str = "H") -> str:
    """Write a head the way the field does."""
    return f"L{layer}{kind}{head}"


def visible(token: object, longest: int = LONGEST) -> str:
    """Make the whitespace of a token visible and keep plotly from reading it as markup.

    >>> visible(" the"), visible("a\\n"), visible("<bos>"), visible("")
    ('·the', 'a⏎', '&lt;bos&gt;', '∅')
    """
    return html.escape(shown_token(token, longest), quote=False)


def shown_token(token: object, longest: int = LONGEST) -> str:
    """Make the whitespace of a token visible, for where text is shown as text."""
    text = str(token).replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")
    return (text[: longest - 1] + "…" if len(text) > longest else text) or "∅"


def measured(value: float, units: str) -> str:
    """Write a value with its units."""
    return amount(value) + (f" {units}" if units and math.isfinite(value) else "")


def interval_label(low: float, high: float) -> str:
    """Write the interval of a value."""
    return f"95 % interval {amount(low)} to {amount(high)}"


def described(array: xr.DataArray, name: str, value: float, ends: Sequence[float] = ()) -> str:
    """Write the hover text of a value: its name, the value with its units, and its interval."""
    lines = [name, f"{title(array)}: {measured(value, units(array))}"]
    if ends:
        lines.append(interval_label(*ends))
    return "<br>".join(lines)


def absent(array: xr.DataArray) -> list[bool]:
    """Return which layers of a variable have no attention map.

    >>> kinds = {"attention_map": ("layer", [True, False])}
    >>> absent(xr.DataArray([0.1, float("nan")], dims="layer", coords=kinds))
    [False, True]
    """
    if "attention_map" not in array.coords:
        return [False] * array.sizes["layer"]
    return [not has for has in np.asarray(array["attention_map"].values).tolist()]


def title(array: xr.DataArray) -> str:
    """Return what the variable is, in words."""
    text = array.attrs.get("long_name") or str(array.name or "value").replace("_", " ")
    return html.escape(str(text).rstrip("."), quote=False)


def units(array: xr.DataArray) -> str:
    """Return the units of a variable, empty when it has none."""
    return html.escape(str(array.attrs.get("units", "")), quote=False)


def entries(array: xr.DataArray, dim: str) -> list[str]:
    """Return the names of the entries of a dim: its coordinate where it has one, else the index."""
    if dim in array.coords:
        return [html.escape(str(value), quote=False) for value in array[dim].values]
    return [str(index) for index in range(array.sizes[dim])]


def combinations(array: xr.DataArray, dims: tuple[str, ...]) -> list[tuple[str, dict[str, int]]]:
    """List every combination of the entries of `dims`, with the indexers that select it.

    ``layer`` and ``head`` together are written as a head, with a remark where the layer has no
    attention map.
    """
    lacking = absent(array) if "layer" in dims else []
    named = {dim: entries(array, dim) for dim in dims}
    labels = []
    for indices in product(*(range(array.sizes[dim]) for dim in dims)):
        at = dict(zip(dims, indices, strict=True))
        names = []
        for dim in dims:
            entry = named[dim][at[dim]]
            if dim == "head" and "layer" in dims:
                without = " (no map)" if lacking[at["layer"]] else ""
                names.append(head_name(named["layer"][at["layer"]], entry) + without)
            elif dim == "layer" and "head" in dims:
                continue
            else:
                names.append(entry if not entry.isdigit() else f"{dim} {entry}")
        labels.append((", ".join(names), at))
    return labels


def token_row(array: xr.DataArray, dim: str, at: dict[str, int]) -> xr.DataArray | None:
    """Select the words along `dim` for one entry of the other dims, None when there are none.

    Keys have words of their own where there is a coordinate ``key_token``.
    """
    named = [name for name in (f"{dim}_token", "token") if name in array.coords]
    if not named or dim not in array.coords[named[0]].dims:
        return None
    tokens: xr.DataArray = array.coords[named[0]]
    return tokens.isel({other: index for other, index in at.items() if other in tokens.dims})


def positions(
    array: xr.DataArray, dim: str, tokens: xr.DataArray | None, block: int = 1
) -> tuple[list[str], list[str]]:
    """Write the positions along a dim, in full for hover and shortly for the axis.

    ``tokens`` are the words at the positions, or None; ``block`` says how many were drawn as one.
    """
    named = entries(array, dim)
    if block > 1:
        starts = range(0, len(named), block)
        ranges = [f"{named[s]}–{named[min(s + block, len(named)) - 1]}" for s in starts]
        return ranges, ranges
    if tokens is None or dim.endswith("tile"):
        word = "tile " if dim.endswith("tile") else ""
        return [word + name for name in named], named
    words = [visible(word) for word in np.asarray(tokens.values).tolist()]
    return [f"{name}: {word}" for name, word in zip(named, words, strict=True)], words

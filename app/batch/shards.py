"""A prompt set captured in parts, and the parts put together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

if TYPE_CHECKING:
    from headscope.probes.prompts.prompt_batch import Prompts


def slices(count: int, size: int) -> list[slice]:
    """Split a number of prompts into parts of at most ``size``; one part where it is 0."""
    if not 0 < size < count:
        return [slice(0, count)]
    return [slice(at, min(at + size, count)) for at in range(0, count, size)]


def subset(prompts: Any, part: slice) -> Any:
    """Return a part of a task, or of a list of prompts."""
    if hasattr(prompts, "metric"):
        return replace(prompts, prompts=prompts.prompts[part])
    return prompts[part]


def merge(captures: Sequence[xr.Dataset], whole: Prompts) -> xr.Dataset:
    """Concatenate the captures of the parts of a prompt set, in order.

    Every statistic of a capture has the dim prompt, so that its parts stand beside each other, and
    NaN stands beyond the length of a prompt, as in a capture of all. What holds for the model is
    that of the part with the longest prompt, which reaches farthest. The captures have the same
    options; ``whole`` are the prompts of all parts.
    """
    if len(captures) == 1:
        return captures[0]
    longest = max(captures, key=_longest_prompt)
    sizes = {
        dim: max(part.sizes[dim] for part in captures if dim in part.sizes) for dim in longest.sizes
    }
    variables = {
        str(name): xr.Variable(
            array.dims,
            _stack([part[name].values for part in captures], array.dims, sizes),
            array.attrs,
        )
        if "prompt" in array.dims
        else array
        for name, array in longest.variables.items()
    }
    merged = xr.Dataset(
        {name: array for name, array in variables.items() if name not in longest.coords},
        coords={name: array for name, array in variables.items() if name in longest.coords},
    )
    padded = any(part.attrs["padding"] != "none" for part in captures)
    merged.attrs = {
        **longest.attrs,
        "n_prompts": len(whole.ids),
        "prompts_sha256": whole.digest(),
        "padding": "right" if padded else "none",
    }
    return merged


def _longest_prompt(capture: xr.Dataset) -> int:
    """Return the length of the longest prompt of a capture."""
    return max(capture.sizes.get("query", 0), capture.sizes.get("key", 0))


def _stack(
    arrays: Sequence[np.ndarray[Any, Any]], dims: Sequence[Any], sizes: dict[Any, int]
) -> np.ndarray[Any, Any]:
    """Stack along prompts, the first dim, filling up what is shorter with missing values."""
    kind = np.result_type(*arrays)
    fill: Any = {"f": np.nan, "U": "", "i": -1}[kind.kind]
    shape = (sum(map(len, arrays)), *(sizes[dim] for dim in dims[1:]))
    stacked = np.full(shape, fill, kind)
    start = 0
    for array in arrays:
        extent = (slice(0, size) for size in array.shape[1:])
        stacked[(slice(start, start + len(array)), *extent)] = array
        start += len(array)
    return stacked

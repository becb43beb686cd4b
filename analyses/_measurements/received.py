"""The weight that every key receives, and the keys that enough queries see."""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._runtime.results import attending
from headscope.kernels.errors import NotApplicable


def weight(capture: xr.Dataset) -> NDArray[np.float64]:
    """Return α (prompt, layer, head, key): the mean weight of a key from queries that see it.

    Rows of sigmoid attention do not sum to one, so there it is the mean share of their sums.
    """
    name = "received_share" if rule(capture) else "received"
    if name not in capture:
        raise NotApplicable(
            f"capture: rows of sigmoid attention do not sum to one, so it must hold {name}; give "
            f"capture(..., stats=('received', {name!r}))"
        )
    received = capture[name].transpose("prompt", "layer", "head", "key")
    return received.values.astype(np.float64)


def rule(capture: xr.Dataset) -> str:
    """Describe how weights are normalized, for a convention; empty where rows sum to one."""
    return (
        "; α of shares: each row of sigmoid weights is divided by its sum"
        if capture.attrs.get("weights") == "sigmoid"
        else ""
    )


def steady_weight(capture: xr.Dataset, least: int) -> NDArray[np.float64]:
    """Return α with the keys blanked that fewer than ``least`` queries see."""
    return np.where(queries_of_keys(capture, lengths_of(capture)) >= least, weight(capture), np.nan)


def causal(capture: xr.Dataset) -> NDArray[np.bool_]:
    """Return which layers hide later keys from a query; all where the capture does not say."""
    if "causal" not in capture.coords:
        return np.ones(capture.sizes["layer"], dtype=bool)
    # A layer without attention says nothing, and counts like those that say something.
    return np.asarray(capture["causal"].values | ~attending(capture), dtype=bool)


def queries_of_keys(capture: xr.Dataset, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the queries that see each key (prompt, layer, 1, key)."""
    key = np.arange(capture.sizes["key"])[None, None, :]
    ends = lengths[:, None, None]
    reach = np.full(capture.sizes["layer"], np.inf)
    if "window" in capture.coords:
        window = capture["window"].values
        reach = np.where(np.isnan(window), np.inf, window)
    after = np.minimum(ends - key, reach[None, :, None])
    before = np.where(causal(capture)[None, :, None], 0, np.minimum(key, reach[:, None] - 1))
    return np.asarray((after + before)[:, :, None, :], dtype=np.int64)


def lengths_of(capture: xr.Dataset) -> NDArray[np.int64]:
    """Return the number of queries of each prompt."""
    if "length" in capture:
        return np.asarray(capture["length"].values, dtype=np.int64)
    present = capture["received"].isel(layer=0, head=0).transpose("prompt", "key").notnull()
    return np.asarray(present.sum("key").values, dtype=np.int64)


def token_texts(capture: xr.Dataset) -> NDArray[Any] | None:
    """Return the tokens that the keys are, dims prompt and key; None where they are not known."""
    name, dim = ("key_token", "key") if "key_token" in capture.coords else ("token", "query")
    if name not in capture.coords:
        return None
    return np.asarray(capture[name].transpose("prompt", dim).values)


def token_axis(capture: xr.Dataset, length: int) -> dict[str, Any]:
    """Return coordinates over the first tokens of the first prompt; words where they are known."""
    axis: dict[str, Any] = {"query": np.arange(length)}
    tokens = token_texts(capture)
    if tokens is not None:
        axis["token"] = ("query", tokens[0, :length].astype(str))
    return axis


def largest(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the largest known value along the last axis, NaN where none is known."""
    if values.shape[-1] == 0:
        return np.full(values.shape[:-1], np.nan)
    best = np.where(np.isnan(values), -np.inf, values).max(-1)
    return np.where(np.isneginf(best), np.nan, best)

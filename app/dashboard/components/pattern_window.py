"""A long prompt's whole map in blocks, and a window of it drawn exactly."""

import numpy as np
import streamlit as st
import xarray as xr

from headscope import viz
from headscope.app.dashboard import cache, state
from headscope.app.dashboard.components.browser_view import mount

Window = tuple[slice, slice]

WEIGHT = {"units": "probability", "scale": "sequential", "low": 0.0, "high": 1.0}


def choose(
    key: cache.RunKey, capture: xr.Dataset, ids: tuple[int, ...], head: tuple[int, int]
) -> Window | None:
    """Draw the whole map; returns the window that is chosen, None where none is."""
    stands = state.long_view(len(ids))
    overview = cache.overview(key, ids, *head)
    number = int(st.session_state["prompt"])
    if "roles" in capture.coords and ids == _prompt(capture, number):
        overview = overview.assign_coords(roles=str(capture["roles"].values[number]))
    view = viz.long_view(overview, state=stands)
    # A window that the page does not hold is computed below it.
    view.data["live"] = True
    mount(view, "long_view", state=state.keep_long_view)
    if "queries" not in stands:
        return None
    queries, keys = (slice(*stands[side]) for side in ("queries", "keys"))
    return queries, keys


def compute(
    key: cache.RunKey, ids: tuple[int, ...], head: tuple[int, int], window: Window
) -> xr.DataArray:
    """Compute the window, with its tokens."""
    tokens = np.array(cache.model(key).to_str_tokens(ids))
    queries, keys = window
    return xr.DataArray(
        cache.window(key, ids, *head, (queries.start, queries.stop), (keys.start, keys.stop)),
        dims=("query", "key"),
        name="pattern",
        coords={
            "query": np.arange(queries.start, queries.stop),
            "key": np.arange(keys.start, keys.stop),
            "token": ("query", tokens[queries]),
            "key_token": ("key", tokens[keys]),
        },
        attrs={"long_name": f"Attention of L{head[0]}H{head[1]}, exact", **WEIGHT},
    )


def _prompt(capture: xr.Dataset, number: int) -> tuple[int, ...]:
    count = int(capture["length"][number])
    return tuple(capture["token_id"].values[number, :count].tolist())

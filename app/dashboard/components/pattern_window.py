"""A long prompt's whole map in tiles, and a window of it drawn exactly."""

from typing import Any

import numpy as np
import streamlit as st
import xarray as xr

from headscope import viz
from headscope.app.dashboard import cache, state

Window = tuple[slice, slice]

# Tiles on each side of the overview, at most.
TILES = 96
SIDES = (64, 128, 256)
FIELDS = {"queries": "First query of the window", "keys": "First key of the window"}
MAPS = {
    "pooled_max": ("largest weight", "Largest attention weight of each tile", "weight"),
    "pooled_mean": ("mean mass", "Attention mass that each tile sends to each tile", "share"),
}
WEIGHT = {"units": "probability", "scale": "sequential", "low": 0.0, "high": 1.0}
CHART = "overview_chart"


def controls(length: int) -> Window:
    """Let the user choose the window; its place and size live in the link."""
    state.take("map", list(MAPS))
    state.take("side", SIDES)
    left, right = st.columns(2)
    left.segmented_control(
        "Overview", list(MAPS), key="map", persist_state="session",
        required=True, format_func=lambda name: MAPS[name][0],
    )  # fmt: skip
    side = right.selectbox(
        "Tokens a side of the window", SIDES, key="side", persist_state="session"
    )
    columns = st.columns(2)
    places = []
    for column, (field, title) in zip(columns, FIELDS.items(), strict=True):
        # Not the last of this size: a widget whose range changes would fall back to the link.
        last = length - SIDES[0]
        state.take(field, range(last + 1))
        st.session_state[field] = min(int(st.session_state[field]), last)
        start = min(
            column.slider(title, 0, last, key=field, persist_state="session"), length - side
        )
        places.append(slice(start, start + side))
    return places[0], places[1]


def overview(
    key: cache.RunKey, ids: tuple[int, ...], head: tuple[int, int], window: Window, name: str
) -> None:
    """Draw the whole map in tiles; a click or a box moves the window."""
    tile = tile_size(len(ids))
    kind = str(st.session_state["map"])
    maps = cache.pooled(key, ids, *head, tile)
    _, words, units = MAPS[kind]
    array = xr.DataArray(
        maps[kind],
        dims=("query_tile", "key_tile"),
        attrs={"long_name": f"L{head[0]}H{head[1]}: {words.lower()}", "units": units, "low": 0.0},
    )
    st.plotly_chart(
        viz.load("pattern").overview(array, tile, window),
        key=CHART,
        on_select=lambda: _move(len(ids)),
        selection_mode=("points", "box"),
        config={"displaylogo": False, "toImageButtonOptions": {"filename": name, "scale": 2}},
        alt=f"Attention of L{head[0]}H{head[1]} on the whole prompt, in tiles of {tile} tokens.",
    )


def compute(
    key: cache.RunKey, ids: tuple[int, ...], head: tuple[int, int], window: Window
) -> xr.DataArray:
    """Compute the window, with its tokens."""
    words = np.array(cache.model(key).words(ids))
    queries, keys = window
    return xr.DataArray(
        cache.window(key, ids, *head, (queries.start, queries.stop), (keys.start, keys.stop)),
        dims=("query", "key"),
        name="pattern",
        coords={
            "query": np.arange(queries.start, queries.stop),
            "key": np.arange(keys.start, keys.stop),
            "token": ("query", words[queries]),
            "key_token": ("key", words[keys]),
        },
        attrs={"long_name": f"Attention of L{head[0]}H{head[1]}, exact", **WEIGHT},
    )


def row(key: cache.RunKey, ids: tuple[int, ...], head: tuple[int, int], query: int) -> xr.DataArray:
    """Compute where one query looks, over the whole prompt."""
    words = cache.model(key).words(ids)
    values = cache.window(key, ids, *head, (query, query + 1), (0, len(ids)))[0]
    return xr.DataArray(values, dims="key", coords={"token": ("key", words)}, attrs=WEIGHT)


def tile_size(length: int) -> int:
    """Choose the tokens of a tile: a power of two that leaves few enough tiles.

    >>> tile_size(1000), tile_size(32768)
    (16, 512)
    """
    tile = 8
    while length > TILES * tile:
        tile *= 2
    return tile


def _move(length: int) -> None:
    """Put the window where the user clicked, or over the box; a click on nothing moves nothing."""
    chosen: dict[str, Any] = st.session_state[CHART]["selection"]
    if chosen.get("box"):
        box = chosen["box"][0]
        spans = [sorted(map(float, box[axis])) for axis in ("y", "x")]
        wide = max(high - low for low, high in spans)
        side = next((known for known in SIDES if known >= wide), SIDES[-1])
        starts = [low for low, _ in spans]
    elif chosen["points"]:
        side = int(st.session_state["side"])
        point = chosen["points"][0]
        starts = [float(point[axis]) - (side - 1) / 2 for axis in ("y", "x")]
    else:
        return
    st.session_state["side"] = side
    for field, start in zip(FIELDS, starts, strict=True):
        st.session_state[field] = int(min(max(round(start), 0), length - side))

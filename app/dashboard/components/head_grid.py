"""All heads at once, as a grid, thumbnails, a scatter or a table; click one to pick it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from headscope import viz
from headscope.app.dashboard import cache, state
from headscope.app.dashboard.components import finder, score_picker
from headscope.app.dashboard.components.browser_view import mount
from headscope.app.report.scores import Score
from headscope.kernels.errors import HeadscopeError

VIEWS = ("grid", "thumbnails", "scatter", "table")
# Heads whose names stand in the scatter, on each axis.
NAMED = 3
# Heads a layer, at most, that leave room for the list beside their grid.
BESIDE = 16


def draw(
    scores: Mapping[str, Score],
    chosen: Score,
    table: pd.DataFrame,
    name: str,
    among: npt.NDArray[np.bool_] | None = None,
) -> Any:
    """Draw every head by the chosen score, in the view that the user picked.

    ``among`` tells which heads (layer, head) to show; the grid fades the others, and None is all.
    Returns the place for thumbnails, to be drawn when the prompt in view is known; else None.
    """
    view = st.segmented_control(
        "View", VIEWS, key="view", persist_state="session", required=True,
        label_visibility="collapsed",
    )  # fmt: skip
    at = int(st.session_state["layer"]), int(st.session_state["head"])
    beside = view in ("grid", "thumbnails") and chosen.array.sizes["head"] <= BESIDE
    container, listed = st.columns([3, 2]) if beside else (st.container(), st.container())
    with container:
        thumbnails = _view(str(view), scores, chosen, table, name, among)
    with listed:
        finder.draw(chosen, at, among)
    st.caption(score_picker.caption(chosen))
    return thumbnails


def _view(
    view: str,
    scores: Mapping[str, Score],
    chosen: Score,
    table: pd.DataFrame,
    name: str,
    among: npt.NDArray[np.bool_] | None,
) -> Any:
    """Draw the heads in one view; return the container for thumbnails, else None."""
    at = int(st.session_state["layer"]), int(st.session_state["head"])
    if view == "scatter":
        other = st.selectbox(
            "Against", list(scores), format_func=lambda key: scores[key].title, key="against"
        )
        figure = _scatter(chosen, scores[other], at, among)
        _clickable(figure, "scatter_chart", f"{name}-{chosen.key}")
    elif view == "table":
        rows = table if among is None else table[among.ravel()]
        columns = dict.fromkeys(["name", chosen.key, *scores])
        st.dataframe(rows[list(columns)], hide_index=True, height=420)
    elif view == "thumbnails":
        return st.container()
    else:
        grid = viz.head_grid(
            chosen.array, lower=chosen.lower, upper=chosen.upper, picked=at, shown=among
        )
        mount(grid, "head_grid", pick=_pick)
    return None


def draw_thumbnails(
    key: cache.RunKey, ids: cache.Tokens, among: npt.NDArray[np.bool_] | None
) -> None:
    """Draw the pattern of every head on the prompt in view."""
    at = int(st.session_state["layer"]), int(st.session_state["head"])
    try:
        maps = cache.pooled_heads(key, ids)
    except HeadscopeError as refusal:
        st.error(str(refusal), icon=":material/error:")
        return
    mount(viz.thumbnails(maps, picked=at, shown=among), "thumbnails", pick=_pick)


def _pick(at: Sequence[int]) -> None:
    state.select_head(int(at[0]), int(at[1]))


def _clickable(figure: Any, key: str, name: str) -> None:
    st.plotly_chart(
        figure,
        key=key,
        on_select=lambda: state.select_clicked(key),
        selection_mode="points",
        config={"displaylogo": False, "toImageButtonOptions": {"filename": name, "scale": 2}},
        alt="Every head of the model by the chosen score; the table view shows the same numbers.",
    )


def _scatter(
    across: Score, up: Score, at: tuple[int, int], among: npt.NDArray[np.bool_] | None
) -> Any:
    shown = np.ones(across.array.shape, dtype=bool) if among is None else among
    rows, columns = np.nonzero(shown)
    right, height = across.array.values[shown], up.array.values[shown]
    layers, heads = (across.array[dim].values for dim in ("layer", "head"))
    labels = list(map(viz.head_name, layers[rows], heads[columns]))
    is_picked = (rows == at[0]) & (columns == at[1])
    named = is_picked | _extreme(right) | _extreme(height)
    figure = go.Figure(
        go.Scatter(
            x=right,
            y=height,
            mode="markers+text",
            # The names of all heads would cover each other; the hover text has them.
            text=[label if shown else "" for label, shown in zip(labels, named, strict=True)],
            hovertext=labels,
            textposition="top center",
            customdata=np.stack([rows, columns], axis=-1).tolist(),
            marker={
                "size": np.where(is_picked, 16, 9),
                "symbol": np.where(is_picked, "diamond", "circle"),
                "color": rows,
                "colorscale": "Viridis",
                "colorbar": {
                    "title": {"text": "layer", "side": "right"},
                    "thickness": 14,
                    "tickformat": "d",
                    "nticks": min(across.array.sizes["layer"], 8),
                },
            },
            hovertemplate="<b>%{hovertext}</b><br>%{x:.3r}, %{y:.3r}<extra></extra>",
        )
    )
    figure.update_layout(
        xaxis_title=f"{across.title} ({across.array.attrs.get('units', '')})",
        yaxis_title=f"{up.title} ({up.array.attrs.get('units', '')})",
        clickmode="event+select",
        height=440,
        margin={"l": 60, "r": 10, "t": 20, "b": 50},
    )
    return figure


def _extreme(values: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Mark the few largest values, by size."""
    size = np.nan_to_num(np.abs(values))
    least = np.sort(size)[-NAMED:][:1]
    return np.asarray(size >= (least[0] if len(least) else np.inf))

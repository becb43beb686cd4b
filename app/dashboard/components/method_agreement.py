"""How far methods of head importance agree: a matrix, and two of them head by head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import streamlit as st
import xarray as xr

from headscope import viz
from headscope.analyses._stats.rank_correlation import OVER_HEADS, most_different
from headscope.app.dashboard import state
from headscope.app.dashboard.components import head_figures, picked_head
from headscope.app.report.answer import METHODS, PARTING, agreements
from headscope.app.report.scores import GRID, interval_text

KEYS = {"x": "Method across", "y": "Method up"}
NAMED = 5
CELL = 64


def draw(result: xr.Dataset, picked: str, name: str) -> None:
    """Draw the matrix, and the two methods that the link names against each other."""
    methods = [method for method in METHODS if method in result]
    left, right = st.columns([6, 5], gap="medium")
    with right:
        pair = _pair(methods)
    agreement = agreements(result, methods)
    with left:
        picked_head.chart(
            matrix(methods, agreement, pair), "agreement", f"{name}-agreement",
            "Rank correlation of every two methods; the lists beside it choose two of them.",
            on_pick=_choose,
        )  # fmt: skip
        st.caption(
            f"Spearman ρ and its 95 % interval where `importance` has made one: {OVER_HEADS}. "
            "A click opens the two methods."
        )
    with right:
        _against(result, pair, agreement, picked, name)


def _pair(methods: Sequence[str]) -> tuple[str, str]:
    """Draw the selection of two methods, by default the gradient and what it estimates."""
    start = PARTING if set(PARTING) <= set(methods) else (methods[0], methods[-1])
    named = {METHODS[method]: method for method in methods}
    chosen = []
    for column, key, first in zip(st.columns(2), KEYS, start, strict=True):
        state.take(key, list(named), METHODS[first])
        title = column.selectbox(KEYS[key], list(named), key=key, persist_state="session")
        chosen.append(named[title])
    return chosen[0], chosen[1]


def _choose(names: str) -> None:
    for key, method in zip(KEYS, names.split(), strict=True):
        st.session_state[key] = METHODS[method]


def matrix(
    methods: Sequence[str],
    agreement: dict[tuple[str, str], tuple[float, float, float]],
    pair: Sequence[str],
) -> Any:
    """Draw a cell for every two methods, with ρ and its interval in it."""
    size = len(methods)
    at_of = list(map(str, range(size)))
    rho, written = np.full((size, size), np.nan), np.full((size, size), "", dtype=object)
    for names, (value, *ends) in agreement.items():
        for row, column in (names, names[::-1]):
            at = methods.index(row), methods.index(column)
            rho[at] = value
            interval = interval_text(*ends).replace(" ", "<br>")
            written[at] = f"<b>{viz.amount(value)}</b>" + (f"<br>{interval}" if interval else "")
    array = xr.DataArray(
        rho, dims=("one", "other"), coords={"one": at_of, "other": at_of},
        attrs={"long_name": "Do the methods agree?", "units": "Spearman ρ", "scale": "diverging",
               "low": -1.0, "high": 1.0},
    )  # fmt: skip
    figure = viz.load("matrix").figure(array)
    # The cells are hit by marks at their middles, of which the nearest is reported.
    figure.update_traces(hoverinfo="skip", hovertemplate=None)
    figure.data[0].update(
        text=written, texttemplate="%{text}", textfont={"size": 11}, showscale=False
    )
    pairs = [(at, to) for at in range(size) for to in range(size) if at != to]
    figure.add_trace(
        go.Scatter(
            x=[at_of[to] for _, to in pairs], y=[at_of[at] for at, _ in pairs], mode="markers",
            marker={"size": CELL // 2, "opacity": 0}, showlegend=False,
            customdata=[[f"{methods[to]} {methods[at]}"] for at, to in pairs],
            hovertext=[
                f"{METHODS[methods[at]]} and {METHODS[methods[to]]}: ρ {written[at, to]}"
                for at, to in pairs
            ],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    )  # fmt: skip
    across, up = (methods.index(method) for method in pair)
    for x, y in {(across, up), (up, across)} if across != up else ():
        figure.add_shape(
            type="rect", x0=x - 0.5, x1=x + 0.5, y0=y - 0.5, y1=y + 0.5,
            line={"width": 3, "color": "#8a929c"},
        )  # fmt: skip
    axis = {
        "type": "category", "tickvals": at_of, "automargin": True, "showgrid": False,
        "fixedrange": True,
        # In lines, so that the names of columns do not cover each other.
        "ticktext": [METHODS[method].replace(" ", "<br>") for method in methods],
    }  # fmt: skip
    figure.update_layout(
        height=130 + CELL * size, hovermode="closest", hoverdistance=-1, title=None,
        margin={"l": 10, "r": 10, "t": 60, "b": 10},
        xaxis={**axis, "side": "top", "tickangle": 0, "range": [-0.5, size - 0.5]},
        yaxis={**axis, "range": [size - 0.5, -0.5], "autorange": False},
    )  # fmt: skip
    return figure


def _against(
    result: xr.Dataset,
    pair: tuple[str, str],
    agreement: dict[tuple[str, str], tuple[float, float, float]],
    picked: str,
    name: str,
) -> None:
    across, up = pair
    if across == up:
        st.info("Choose two different methods.")
        return
    sides = [result[method].transpose(*GRID) for method in pair]
    differing = most_different(sides[0].values, sides[1].values, NAMED)
    figure = head_figures.scatter(
        sides[0], sides[1], [METHODS[method] for method in pair],
        [text.split()[0] for text in differing], picked,
    )  # fmt: skip
    picked_head.chart(
        figure,
        "methods_scatter",
        f"{name}-{across}-{up}",
        f"Every head by {METHODS[across]} and by {METHODS[up]}; the table below has the numbers.",
    )
    rho, *ends = agreement.get((across, up)) or agreement[up, across]
    count = int((np.isfinite(sides[0].values) & np.isfinite(sides[1].values)).sum())
    st.markdown(
        f"ρ = **{viz.amount(rho)}** {interval_text(*ends)} over {count} heads. "
        f"They disagree most at {', '.join(differing) or 'no head'} (ranks by {METHODS[across]} "
        f"and by {METHODS[up]})."
    )

"""Query-key view: the logit of one query and one key, as a sum over the channels of the head."""

from typing import Any

import streamlit as st
import xarray as xr
from plotly.subplots import make_subplots

from headscope import viz
from headscope.app.dashboard import cache, state
from headscope.app.dashboard.components.browser_view import mount
from headscope.app.dashboard.components.plain import error
from headscope.kernels.errors import HeadscopeError
from headscope.viz.component.row_list import Row, row_list

QUERY, KEY = "query_token", "key_token"
COLOURS = {"q": "#56B4E9", "k": "#CC79A7", "term": "#E69F00"}
# Keys that are listed beside the chosen one.
LISTED = 12


def draw(key: cache.RunKey, ids: cache.Tokens, layer: int, head: int) -> None:
    """Draw the terms of one query and one key, which the user picks, and the keys of the query."""
    if isinstance(ids, tuple) and len(ids) > cache.WHOLE:
        st.info(
            f"Terms of single tokens are shown for texts up to {cache.WHOLE} tokens; this one has "
            f"{len(ids)}."
        )
        return
    try:
        weights = cache.weights(key, ids, layer, head)
        query, other = _tokens(weights)
        terms = cache.terms(key, ids, layer, head, query, other)
    except HeadscopeError as refusal:
        error(refusal)
        return
    st.markdown(_sum(terms))
    st.plotly_chart(_figure(terms), key="terms_chart", config={"displaylogo": False},
                    alt="Query, key and their product in every channel of the head.")  # fmt: skip
    mount(_keys(weights, query, other), "query_keys", pick=_pick)


def _tokens(weights: xr.DataArray) -> tuple[int, int]:
    """Ask for a query and a key; at first the last query and what it attends to most."""
    labels = {
        name: [f"{at}: {viz.shown_token(word)}" for at, word in enumerate(weights[coord].values)]
        for name, coord in ((QUERY, "token"), (KEY, "key_token"))
    }
    count = {name: range(len(words)) for name, words in labels.items()}
    last = len(labels[QUERY]) - 1
    picked: list[int] = []
    columns = st.columns(2)
    for column, (name, title) in zip(
        columns, ((QUERY, "Query token (destination)"), (KEY, "Key token (source)")), strict=True
    ):
        default = last if name == QUERY else _strongest(weights, picked[0])
        state.take(name, count[name], default)
        column.selectbox(
            title, count[name], key=name, persist_state="session",
            format_func=labels[name].__getitem__,
        )  # fmt: skip
        picked.append(int(st.session_state[name]))
    return picked[0], picked[1]


def _strongest(weights: xr.DataArray, query: int) -> int:
    """Find the key of the largest weight; the first token, a sink, only where there is no other."""
    row = weights.values[query].copy()
    if row[1:].any():
        row[0] = 0
    return int(row.argmax())


def _sum(terms: xr.Dataset) -> str:
    """Write how the terms become the weight."""
    score, logit, lse, weight = (
        viz.amount(terms[name]) for name in ("score", "logit", "lse", "weight")
    )
    scale, softcap = terms.attrs["scale"], terms.attrs["softcap"]
    steps = [f"Σ qᵢ·kᵢ × {viz.amount(scale)} = **{score}**"]
    if softcap == softcap:
        steps.append(
            f"soft cap {softcap:g} · tanh(score / {softcap:g}) = {viz.amount(terms['capped'])}"
        )
    if float(terms["bias"]):
        steps.append(f"position bias {viz.amount(terms['bias'], '+')}")
    if not terms.attrs["seen"]:
        return f"{'; '.join(steps)}. The query does not see this key, so its weight is exactly 0."
    steps.append(f"logit {logit}")
    return f"{'; '.join(steps)}; weight = exp({logit} − {lse}) = **{weight}**"


def _figure(terms: xr.Dataset) -> Any:
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for row, (name, colour) in enumerate(COLOURS.items(), 1):
        values, title = terms[name].values, str(terms[name].attrs["long_name"])
        figure.add_bar(
            y=values, row=row, col=1, marker_color=colour, name=title,
            hovertemplate=f"channel %{{x}}<br>{title}: %{{y:.3g}}<extra></extra>",
        )  # fmt: skip
        figure.update_yaxes(title_text=("qᵢ", "kᵢ", "qᵢ·kᵢ·scale")[row - 1], row=row, col=1)
    figure.update_xaxes(title_text="channel of the head, after the rotation", row=3, col=1)
    figure.update_layout(
        height=330, showlegend=False, bargap=0.15, margin={"l": 60, "r": 10, "t": 10, "b": 40}
    )
    return figure


def _keys(weights: xr.DataArray, query: int, other: int) -> Any:
    """List the keys of a query, the largest weight first."""
    row = weights.values[query]
    order = sorted(range(len(row)), key=lambda at: -row[at])[:LISTED]
    words = weights["key_token"].values.tolist()
    rows = [
        Row(
            at, viz.amount(row[at]), share=float(row[at]), tail=f"token {at}",
            words=tuple(words[max(0, at - 4) : at + 3]), at=min(at, 4),
        )
        for at in order
        if row[at] > 0
    ]  # fmt: skip
    return row_list("Keys of this query, by weight", {"Keys of this query, by weight": rows}, other)


def _pick(at: int) -> None:
    st.session_state[KEY] = int(at)

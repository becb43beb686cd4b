"""Pinned heads side by side: their patterns on the prompt in view, and their key scores."""

from collections.abc import Mapping

import pandas as pd
import streamlit as st
import xarray as xr

from headscope import viz
from headscope.analyses._runtime.results import parse_head
from headscope.app.dashboard import cache, state
from headscope.app.dashboard.components import score_picker
from headscope.app.dashboard.components.browser_view import mount
from headscope.app.dashboard.components.plain import error, plain
from headscope.app.report.head_summary import causal_score, highest, standing
from headscope.app.report.scores import Score
from headscope.kernels.errors import HeadscopeError

MOST = 6
# Of each head the scores where it stands highest, and rows in all.
EACH, ROWS = 2, 10


def take(shape: tuple[int, ...]) -> None:
    """Read the pinned heads from the link."""
    names = [viz.head_name(layer, head) for layer in range(shape[0]) for head in range(shape[1])]
    state.take("pins", names, [])


def button(layer: int, head: int) -> None:
    """Draw the button that pins a head, or takes it out again."""
    name = viz.head_name(layer, head)
    pins = st.session_state["pins"]
    full = len(pins) >= MOST and name not in pins
    st.button(
        "Unpin" if name in pins else "Pin", key="pin", icon=":material/push_pin:", disabled=full,
        on_click=_toggle, args=(name,),
    )  # fmt: skip


def _toggle(name: str) -> None:
    pins = st.session_state["pins"]
    st.session_state["pins"] = [pin for pin in pins if pin != name] + [name] * (name not in pins)


def draw(
    key: cache.RunKey, scores: Mapping[str, Score], chosen: Score, ids: cache.Tokens | None
) -> None:
    """Draw the pinned heads, if there are any; a click on a pattern opens its head."""
    pins = st.session_state["pins"]
    if not pins:
        return
    heads = [parse_head(pin) for pin in pins]
    with st.container(key="compare_tray", border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**Pinned heads** ({len(pins)} of {MOST})", width="stretch")
            for name in pins:
                st.button(f"Unpin {name}", key=f"unpin_{name}", on_click=_toggle, args=(name,))
        if ids is not None:
            try:
                _patterns(cache.pooled_heads(key, ids), heads)
            except HeadscopeError as refusal:
                error(refusal)
        st.table(_table(scores, chosen, heads), border="horizontal", hide_index=True)


def _patterns(maps: xr.DataArray, heads: list[tuple[int, int]]) -> None:
    at = int(st.session_state["layer"]), int(st.session_state["head"])
    picked = heads.index(at) if at in heads else None

    def pick(cell: list[int]) -> None:
        state.select_head(*heads[int(cell[1])])

    mount(viz.thumbnail_row(maps, heads, picked), "pinned", pick=pick)


def _table(
    scores: Mapping[str, Score], chosen: Score, heads: list[tuple[int, int]]
) -> pd.DataFrame:
    """Tabulate the chosen score, the causal one, and those where the heads stand highest."""
    causal = causal_score(scores)
    best = [entry.score for pin in heads for entry in highest(scores, *pin)[:EACH]]
    listed = dict.fromkeys(score.key for score in [chosen, *([causal] if causal else []), *best])
    rows = []
    for score in (scores[name] for name in list(listed)[:ROWS]):
        row = {"score": f"{score_picker.mark(score)} {plain(score.title)}"}
        for layer, head in heads:
            cell = standing(score, layer, head)
            units = str(score.array.attrs.get("units", ""))
            text = (
                f"{viz.measured(cell.value, units)} ({cell.rank_text})"
                if cell
                else viz.amount(float("nan"))
            )
            row[viz.head_name(layer, head)] = text
        rows.append(row)
    return pd.DataFrame(rows)

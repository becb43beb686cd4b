"""State of the dashboard: which head, score and prompt is shown; it lives in the link."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import streamlit as st

from headscope.app.dashboard.components.plain import plain
from headscope.viz.component.token_view import MODES, SCALES

# What a link may carry; widgets of these keys are bound to it.
FIELDS = (
    "run", "by", "view", "layer", "head", "prompt", "text", "target",
    "map", "side", "queries", "keys", "type", "stage", "method", "evidence",
)  # fmt: skip
# How the token view stands; the browser says so, and no widget is bound to these.
TOKEN_VIEW = ("mode", "scale", "hide", "token")
MOVES = {"Left": (0, -1), "Right": (0, 1), "Up": (-1, 0), "Down": (1, 0)}


def warn_bad_param(field: str, known: Sequence[object]) -> None:
    """Say when the link asks for something that is not there; the widget falls back by itself."""
    values = st.query_params.get_all(field)
    names = list(map(str, known))
    unknown = [value for value in values if value not in names]
    if not unknown:
        return
    shown = ", ".join(names) if len(names) <= 8 else f"{names[0]} to {names[-1]}"
    st.session_state.setdefault("bad_params", []).extend(
        f"The link asks for {field} = {value!r}, which is not here ({shown or 'there is none'}); "
        "showing another."
        for value in unknown
    )
    # The widget would refuse the value; without it, it takes the others or its default.
    kept = [value for value in values if value in names]
    if kept:
        st.query_params[field] = kept
    else:
        del st.query_params[field]


def start_at_layer(layer: int) -> None:
    """Begin at the first layer with heads to look at, unless the link names one."""
    # As a default of the widget it would quarrel with `select_head`, which sets the state.
    if "layer" not in st.session_state and "layer" not in st.query_params:
        st.session_state["layer"] = layer


def show_warnings() -> None:
    """Show what was wrong with the link, once."""
    for text in st.session_state.pop("bad_params", []):
        st.warning(plain(text), icon=":material/link_off:")


def neighbour(by: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int]:
    """Return the head beside the picked one; at an edge, the picked one itself."""
    at = int(st.session_state["layer"]), int(st.session_state["head"])
    layer, head = (
        min(max(place + step, 0), size - 1) for place, step, size in zip(at, by, shape, strict=True)
    )
    return layer, head


def select_head(layer: int, head: int) -> None:
    """Pick a head.

    Buttons are given the head to go to, not the step: when keys follow each other quickly, the
    browser still sends the position before the last step.
    """
    st.session_state["layer"], st.session_state["head"] = layer, head


def select_clicked(chart: str) -> None:
    """Pick the head that was clicked in a chart; a click on nothing changes nothing."""
    points = st.session_state[chart]["selection"]["points"]
    if points:
        row, column = points[0]["customdata"]
        select_head(int(row), int(column))


def token_view(tokens: int) -> dict[str, Any]:
    """Read from the link how the token view of so many tokens stands."""
    allowed: dict[str, Sequence[object]] = {
        "mode": MODES, "scale": SCALES, "hide": ("True",), "token": range(tokens)
    }  # fmt: skip
    for field, known in allowed.items():
        warn_bad_param(field, known)
    given = {name: st.query_params[name] for name in TOKEN_VIEW if name in st.query_params}
    read: dict[str, Callable[[str], Any]] = {"hide": bool, "token": int}
    return {name: read.get(name, str)(value) for name, value in given.items()}


def keep_token_view(view: Mapping[str, Any]) -> None:
    """Put into the link how the token view stands."""
    for name in TOKEN_VIEW:
        if view[name] in (None, False):
            st.query_params.pop(name, None)
        else:
            st.query_params[name] = str(view[name])


def link() -> str:
    """Return the link that reopens this view."""
    state = {name: st.session_state[name] for name in FIELDS if st.session_state.get(name)}
    state |= {name: st.query_params[name] for name in TOKEN_VIEW if name in st.query_params}
    for name in ("layer", "head"):
        state[name] = st.session_state.get(name, 0)
    base = str(st.context.url or "").split("?")[0]
    return f"{base}?{urlencode(state, doseq=True)}"

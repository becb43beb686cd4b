"""State of the dashboard: which head, score and prompt is shown; it lives in the link."""

from collections.abc import Sequence
from urllib.parse import urlencode

import streamlit as st

# What a link may carry; widgets of these keys are bound to it.
FIELDS = (
    "run", "by", "view", "layer", "head", "prompt", "text", "target",
    "map", "side", "queries", "keys", "type", "stage", "method", "evidence",
)  # fmt: skip
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
        st.warning(text, icon=":material/link_off:")


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


def link() -> str:
    """Return the link that reopens this view."""
    state = {name: st.session_state[name] for name in FIELDS if st.session_state.get(name)}
    for name in ("layer", "head"):
        state[name] = st.session_state.get(name, 0)
    base = str(st.context.url or "").split("?")[0]
    return f"{base}?{urlencode(state, doseq=True)}"

"""Selection: which head, score and prompt is looked at; it lives in the link."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlencode

import streamlit as st

# What a link may carry; widgets of these keys are bound to it.
FIELDS = (
    "run", "by", "view", "layer", "head", "prompt", "text", "target",
    "map", "side", "queries", "keys", "type", "stage", "evidence",
)  # fmt: skip
MOVES = {"Left": (0, -1), "Right": (0, 1), "Up": (-1, 0), "Down": (1, 0)}


def complain(field: str, known: Sequence[object]) -> None:
    """Say when the link asks for something that is not there; the widget falls back by itself."""
    asked = st.query_params.get_all(field)
    names = [str(one) for one in known]
    strange = [one for one in asked if one not in names]
    if not strange:
        return
    shown = ", ".join(names) if len(names) <= 8 else f"{names[0]} to {names[-1]}"
    st.session_state.setdefault("complaints", []).extend(
        f"The link asks for {field} = {one!r}, which is not here ({shown or 'there is none'}); "
        "showing another."
        for one in strange
    )
    # The widget would refuse the value; without it, it takes the others or its default.
    kept = [one for one in asked if one in names]
    if kept:
        st.query_params[field] = kept
    else:
        del st.query_params[field]


def start(layer: int) -> None:
    """Begin at the first layer with heads to look at, unless the link names one."""
    # As a default of the widget it would quarrel with `go`, which sets the state.
    if "layer" not in st.session_state and "layer" not in st.query_params:
        st.session_state["layer"] = layer


def tell() -> None:
    """Show what was wrong with the link, once."""
    for complaint in st.session_state.pop("complaints", []):
        st.warning(complaint, icon=":material/link_off:")


def neighbour(by: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int]:
    """Return the head beside the picked one; at an edge, the picked one itself."""
    at = int(st.session_state["layer"]), int(st.session_state["head"])
    layer, head = (
        min(max(place + step, 0), size - 1) for place, step, size in zip(at, by, shape, strict=True)
    )
    return layer, head


def go(layer: int, head: int) -> None:
    """Pick a head.

    Buttons are given the head to go to, not the step: when keys follow each other quickly, the
    browser still sends the position before the last step.
    """
    st.session_state["layer"], st.session_state["head"] = layer, head


def pick(chart: str) -> None:
    """Pick the head that was clicked in a chart; a click on nothing changes nothing."""
    points = st.session_state[chart]["selection"]["points"]
    if points:
        row, column = points[0]["customdata"]
        go(int(row), int(column))


def link() -> str:
    """Return the link that reopens this view."""
    state = {name: st.session_state[name] for name in FIELDS if st.session_state.get(name)}
    for name in ("layer", "head"):
        state[name] = st.session_state.get(name, 0)
    base = str(st.context.url or "").split("?")[0]
    return f"{base}?{urlencode(state, doseq=True)}"

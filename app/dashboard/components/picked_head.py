"""The head that is picked on a screen: in a list, in a grid or in a chart; it lives in the link."""

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from headscope import viz
from headscope.app.dashboard import screens, state

KEY = "pick"


def select(names: Sequence[str], field: str = KEY) -> str:
    """Let the user pick a head by its name; the first one is picked to begin with."""
    state.take(field, names)
    picked = st.selectbox(
        "Head", names, key=field, persist_state="session",
        help="Type its name, or click it in a figure or in the table.",
    )  # fmt: skip
    return str(picked)


def pick(name: str, field: str = KEY) -> None:
    """Pick a head, in a callback."""
    st.session_state[field] = name


def pick_cell(names: Sequence[Sequence[str]], field: str = KEY) -> Callable[[Sequence[int]], None]:
    """Return what picks the head of a cell of a grid."""
    return lambda at: pick(names[int(at[0])][int(at[1])], field)


def chart(
    figure: Any, key: str, name: str, alt: str, on_pick: Callable[[str], None] = pick
) -> None:
    """Draw a figure whose marks hold names as custom data; a click on one picks it.

    Plotly takes a second click on a mark for taking it back: it picks the same again.
    """

    def clicked() -> None:
        points = st.session_state[key]["selection"]["points"]
        last = f"{key}_clicked"
        if points:
            st.session_state[last] = points[0]["customdata"][0]
        if st.session_state.get(last):
            on_pick(st.session_state[last])

    # What is picked stands out by itself; others are not to fade.
    figure.update_traces(
        selected={"marker": {"opacity": 1}}, unselected={"marker": {"opacity": 1}},
        selector={"type": "scatter"},
    )  # fmt: skip
    figure.update_layout(clickmode="event+select", dragmode=False)
    st.plotly_chart(
        figure, key=key, on_select=clicked, selection_mode="points", alt=alt,
        config={
            "modeBarButtons": [["toImage"]],
            "displaylogo": False,
            "toImageButtonOptions": {"filename": name, "scale": 2},
        },
    )  # fmt: skip


def grid_names(array: Any) -> list[list[str]]:
    """List the heads of a grid, layers down."""
    layers, heads = (array[dim].values.tolist() for dim in ("layer", "head"))
    return [[viz.head_name(layer, head) for head in heads] for layer in layers]


def indices_of(names: Sequence[Sequence[str]], name: str) -> tuple[int, int]:
    """Find the layer and the head of a name in the grid."""
    return next((at, row.index(name)) for at, row in enumerate(names) if name in row)


def link(label: str, run: str, at: tuple[int, int], by: str) -> None:
    """Draw a link that opens a head of a run in Heads, by a score."""
    where = {"run": run, "by": by, "layer": at[0], "head": at[1]}
    screens.link("heads", label, where, ":material/grid_on:")

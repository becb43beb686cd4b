"""Circuits: which edges join heads, MLPs and embedding, drawn in layers; and what without them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import streamlit as st
import xarray as xr

from headscope import viz
from headscope.analyses._runtime.results import GRID
from headscope.analyses.comparison.circuit import from_result, to_json
from headscope.app.dashboard import cache, state
from headscope.app.dashboard.components import (
    circuit_graph,
    picked_head,
    run_button,
    run_picker,
    what_if,
)
from headscope.app.dashboard.components.plain import plain
from headscope.app.report.page import is_doubtful

TITLE = "Circuit"
# What is offered where a run has no graph yet, and what it would show.
OFFERED = {
    "edge_circuits": "The smallest circuit of edges that keeps the task was not looked for yet.",
    "edge_attribution": "Edges between heads, MLPs and embedding were not scored on this run.",
    "sae_circuits": "Heads that say something only in the task were not looked for.",
}
COUNTS = (10, 20, 40, 60)
LINKED = 8
"""Heads that are linked."""


def draw() -> None:
    """Draw the screen for the run that the link names."""
    st.title(TITLE)
    read = run_picker.read()
    if read is None:
        return
    key, capture, results, name = read
    complaints = st.container()
    graphs = circuit_graph.graphs(results)
    if graphs:
        _graph(key, capture, results, graphs, f"{name}-circuit")
    drawn = {graph.partition(".")[0] for graph in graphs}
    missing = {analysis: why for analysis, why in OFFERED.items() if analysis not in drawn}
    if missing:
        st.header("Other circuits" if graphs else "No circuit yet")
        for analysis, why in missing.items():
            run_button.offer(key, analysis, why)
    with complaints:
        state.show_warnings()


def _graph(
    key: cache.RunKey,
    capture: xr.Dataset,
    results: Mapping[str, xr.Dataset],
    graphs: Mapping[str, xr.DataArray],
    name: str,
) -> None:
    """Draw one graph: what is shown of it, the figure, its heads, and the same as a table."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        state.take("graph", list(graphs))
        chosen = str(st.selectbox("Graph", list(graphs), key="graph", persist_state="session"))
        state.take("edges", COUNTS, COUNTS[1])
        count = st.segmented_control(
            "Strongest edges", COUNTS, key="edges", persist_state="session", required=True
        )
    analysis, _, variable = chosen.partition(".")
    array, result = graphs[chosen], results[analysis]
    nodes = list(dict.fromkeys(each for side in circuit_graph.ends(array) for each in side))
    with st.container(horizontal=True):
        pinned, expanded = (
            _nodes(field, nodes, title, text)
            for field, title, text in (
                ("pin", "Ways through", "Only edges on a way through these nodes. A click in the "
                 "figure adds one."),
                ("expand", "All edges of", "Their weak edges are drawn, too."),
            )
        )  # fmt: skip
    (st.warning if is_doubtful(result) else st.markdown)(plain(result.attrs.get("note", "")))
    places = circuit_graph.shown(array, int(count or COUNTS[1]), pinned, expanded)
    if not places.size:
        st.markdown("No edge that is shown lies on a way through these nodes; show more edges.")
        return
    edges = array.isel(edge=places)
    weakest = viz.measured(float(np.abs(edges.values).min()), str(array.attrs.get("units", "")))
    st.caption(plain(f"{edges.size} of {array.size} edges, the weakest {weakest}."))
    picked_head.chart(
        circuit_graph.figure(edges), "circuit", name,
        "Nodes by layer and the edges between them; the table below has the numbers.", _pin,
    )  # fmt: skip
    st.caption(plain(array.attrs.get("convention", "")))
    _heads(key, capture, f"{analysis}.{_grid_score(result)}", edges, pinned)
    st.header("Edges")
    table = circuit_graph.table(result.isel(edge=places), variable)
    st.dataframe(table, hide_index=True, key="edge_table", alt="The edges that are drawn.")
    with st.container(horizontal=True):
        st.download_button(
            "Edges as CSV", table.to_csv(index=False), f"{name}.csv", key="download_edges",
            icon=":material/download:", on_click="ignore", help="The edges that are drawn.",
        )  # fmt: skip
        if "input" in array.coords:
            drawn = from_result(result.isel(edge=places), variable, len(places))
            st.download_button(
                "Circuit as JSON", to_json(drawn), f"{name}.json", key="download_circuit",
                icon=":material/download:", on_click="ignore",
                help="The edges that are drawn and where they come from, as "
                "analyses.comparison.load reads them.",
            )  # fmt: skip


def _heads(
    key: cache.RunKey, capture: xr.Dataset, by: str, edges: xr.DataArray, pinned: Sequence[str]
) -> None:
    """Link the heads that are drawn, and let the user ablate them; those pinned, if any are."""
    heads = circuit_graph.heads(edges)
    own = {each: heads[each] for each in pinned if each in heads} or heads
    if not own:
        return
    run = Path(key.path).name
    with st.container(horizontal=True):
        for name, at in list(own.items())[:LINKED]:
            picked_head.link(f"Open {name} in Heads", run, at, by)
    with st.expander(f"What is lost without {', '.join(own)}?", key="what_if_circuit"):
        first, *others = own
        opens = ("circuit", {"run": run}, "See the answer")
        what_if.draw(key, capture, *own[first], others=others, opens=opens)


def _grid_score(result: xr.Dataset) -> str:
    """Name the first score of heads that a result has."""
    return next((str(name) for name in result.data_vars if result[name].dims == GRID), "")


def _nodes(field: str, nodes: Sequence[str], title: str, text: str) -> list[str]:
    state.take(field, nodes, [])
    return list(st.multiselect(title, nodes, key=field, persist_state="session", help=text))


def _pin(name: str) -> None:
    """Add a node to those that ways are drawn through, or take it out again, in a callback."""
    pinned = list(st.session_state.get("pin") or [])
    others = [each for each in pinned if each != name]
    st.session_state["pin"] = others if name in pinned else [*pinned, name]

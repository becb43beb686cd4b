"""Circuits: edges between heads, MLPs and embedding, drawn in layers, and the loss without them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import streamlit as st
import xarray as xr

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
    "edge_circuits": "The smallest circuit of edges that keeps the task was not searched yet.",
    "edge_attribution": "Edges between heads, MLPs and embedding were not scored on this run.",
    "sae_circuits": "Heads that say something only in the task were not searched.",
}
COUNTS = (10, 20, 40, 60)


def draw() -> None:
    """Draw the screen for the run that the link names."""
    st.title(TITLE)
    read = run_picker.read()
    if read is None:
        return
    key, capture, results, name = read
    warnings = st.container()
    graphs = circuit_graph.graphs(results)
    if graphs:
        _graph(key, capture, results, graphs, f"{name}-circuit")
    drawn = {graph.partition(".")[0] for graph in graphs}
    missing = {analysis: why for analysis, why in OFFERED.items() if analysis not in drawn}
    if missing:
        st.header("Other circuits" if graphs else "No circuit yet")
        for analysis, why in missing.items():
            run_button.offer(key, analysis, why)
    with warnings:
        state.show_warnings()


def _graph(
    key: cache.RunKey,
    capture: xr.Dataset,
    results: Mapping[str, xr.Dataset],
    graphs: Mapping[str, xr.DataArray],
    name: str,
) -> None:
    """Draw one graph: what is shown of it, the figure, the same as a table, and its heads."""

    def title_of(graph: str) -> str:
        analysis = graph.partition(".")[0].replace("_", " ").capitalize()
        return f"{analysis}: {graphs[graph].attrs.get('long_name', graph)}"

    with st.container(horizontal=True, vertical_alignment="bottom"):
        # The circuit that was run alone comes first, the scores of edges one by one later.
        ranks = {analysis: rank for rank, analysis in enumerate(OFFERED)}
        offered = sorted(graphs, key=lambda graph: ranks.get(graph.partition(".")[0], len(ranks)))
        state.take("graph", offered, decides=True)
        chosen = str(
            st.selectbox(
                "Graph", offered, key="graph", persist_state="session", format_func=title_of
            )
        )
        state.take("edges", COUNTS, COUNTS[1])
        count = st.segmented_control(
            "Strongest edges", COUNTS, key="edges", persist_state="session", required=True
        )
    number = int(count or COUNTS[1])
    analysis, _, variable = chosen.partition(".")
    result, nodes = results[analysis], circuit_graph.nodes(graphs[chosen])
    with st.container(horizontal=True):
        pinned = _nodes(
            "pin", nodes, "Paths through",
            "Of the strongest edges only those on a path through one of these nodes. A click on a "
            "node in the figure, or on an edge for its source, adds the node or takes it out.",
        )  # fmt: skip
        expanded = _nodes(
            "expand", nodes, "All edges of",
            "All edges of these nodes in this result are drawn, the weak ones, too.",
        )  # fmt: skip
    (st.warning if is_doubtful(result) else st.markdown)(plain(result.attrs.get("note", "")))
    edges = circuit_graph.shown(graphs[chosen], number, pinned, expanded)
    if not edges.size:
        st.info(
            f"None of the strongest {number} edges lies on a path through {', '.join(pinned)}. "
            "Show more edges, or all edges of a node."
        )
        return
    st.caption(plain(circuit_graph.summary(result, variable, edges, number, pinned)))
    drawn = result.isel(edge=edges)
    with st.container(key="stack_circuit"):
        left, right = st.columns([3, 2], gap="medium")
    with left:
        picked_head.chart(
            circuit_graph.figure(drawn, variable, pinned, results), "circuit", name,
            "Nodes by layer and the edges between them; the table of edges has the numbers.", _pin,
        )  # fmt: skip
        st.caption(plain(drawn[variable].attrs.get("convention", "")))
    with right:
        _table(drawn, variable, name, Path(key.path).name)
    _heads(key, capture, f"{analysis}.{_grid_score(result)}", drawn, variable, pinned)


def _table(drawn: xr.Dataset, variable: str, name: str, run: str) -> None:
    """Draw the edges of the figure as a table that can be sorted, and offer them as files."""
    st.subheader("Edges")
    table = circuit_graph.table(drawn, variable)
    numbers = table.select_dtypes("float").columns
    st.dataframe(
        table, hide_index=True, key="edge_table", alt="The edges that are drawn.",
        column_config={
            column: st.column_config.NumberColumn(column, format="%.3g") for column in numbers
        },
    )  # fmt: skip
    with st.container(horizontal=True):
        st.download_button(
            "Edges as CSV", circuit_graph.file(drawn, variable, run), f"{name}.csv",
            key="download_edges", icon=":material/download:", on_click="ignore",
            help="The edges that are drawn, with intervals, units, model, task and run.",
        )  # fmt: skip
        if "input" in drawn.coords:
            circuit = from_result(drawn, variable, drawn.sizes["edge"])
            st.download_button(
                "Circuit as JSON", to_json(circuit), f"{name}.json", key="download_circuit",
                icon=":material/download:", on_click="ignore",
                help="The edges that are drawn and where they come from, as "
                "analyses.comparison.load reads them.",
            )  # fmt: skip


def _heads(
    key: cache.RunKey,
    capture: xr.Dataset,
    by: str,
    drawn: xr.Dataset,
    variable: str,
    pinned: Sequence[str],
) -> None:
    """Link the heads that are pinned, and let the user ablate them; all, if none is pinned."""
    heads = circuit_graph.heads(drawn[variable])
    if not heads:
        return
    st.header("What if heads were ablated?")
    pinned_heads = {head: heads[head] for head in pinned if head in heads}
    run = Path(key.path).name
    if pinned_heads:
        with st.container(horizontal=True):
            for head, position in pinned_heads.items():
                picked_head.link(f"Open {head} in Heads", run, position, by)
    else:
        st.caption("Heads chosen under Paths through stand here alone, with a link to Heads.")
    first, *others = pinned_heads or heads
    opens = ("circuit", {"run": run}, "See the answer")
    what_if.draw(
        key, capture, *heads[first], others=others, opens=opens,
        task=str(drawn.attrs.get("task", "")),
    )  # fmt: skip


def _grid_score(result: xr.Dataset) -> str:
    """Return the name of the first score of heads that a result has."""
    return next((str(name) for name in result.data_vars if result[name].dims == GRID), "")


def _nodes(field: str, nodes: Sequence[str], title: str, text: str) -> list[str]:
    """Draw the selection of nodes, which is in the link."""
    state.take(field, nodes, [])
    return list(st.multiselect(title, nodes, key=field, persist_state="session", help=text))


def _pin(name: str) -> None:
    """Add a node to those that paths are drawn through, or take it out again, in a callback."""
    pinned = list(st.session_state.get("pin") or [])
    others = [node for node in pinned if node != name]
    st.session_state["pin"] = others if name in pinned else [*pinned, name]

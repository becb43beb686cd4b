"""Where an answer comes from: its tokens by every method, which to believe, and its routes."""

from collections.abc import Mapping

import pandas as pd
import streamlit as st
import xarray as xr

from headscope import viz
from headscope.app.dashboard import state
from headscope.app.dashboard.components import (
    route_figures,
    run_button,
    run_picker,
    token_relevance,
)
from headscope.app.dashboard.components.plain import plain
from headscope.app.report.page import is_doubtful
from headscope.app.report.scores import interval_text

TITLE = "Attribution"
FAITHFULNESS, ROUTES = "faithfulness", "routes"
# Columns of the table: variable, and what stands above it.
MEASURES = {
    "deletion": "deletion (small is faithful)",
    "insertion": "insertion (large is faithful)",
    "replacement_correlation": "ρ with token replacement",
}


def draw() -> None:
    """Draw the screen for the run that the link names."""
    st.title(TITLE)
    read = run_picker.read()
    if read is None:
        return
    key, capture, results, name = read
    complaints = st.container()
    measured = _measured(results, FAITHFULNESS)
    st.header("Which tokens does the answer come from?")
    token_relevance.draw(key, capture, measured)
    st.header("Which method is faithful?")
    if measured is None:
        run_button.offer(key, FAITHFULNESS, "How faithful the methods are was not measured here.")
    else:
        _methods(measured)
    st.header("Through which heads?")
    traced = _measured(results, ROUTES)
    if traced is None:
        run_button.offer(key, ROUTES, "The routes to the answer were not traced on this run yet.")
    else:
        route_figures.draw(key, traced, name)
    with complaints:
        state.show_warnings()


def _measured(results: Mapping[str, xr.Dataset], name: str) -> xr.Dataset | None:
    result = results.get(name)
    return None if result is None or "skipped" in result.attrs else result


def _methods(result: xr.Dataset) -> None:
    """Compare all methods on one task."""
    (st.warning if is_doubtful(result) else st.markdown)(plain(result.attrs.get("note", "")))
    tasks = result["task"].values.tolist()
    state.take("task", tasks)
    task = st.segmented_control("Task", tasks, key="task", persist_state="session", required=True)
    row = result.sel(task=task)
    gap = (row["insertion"] - row["deletion"]).values
    table = pd.DataFrame({"method": row["explainer"].values, "insertion − deletion": gap})
    for name, title in MEASURES.items():
        ends = (row[f"{name}{end}"].values for end in ("", "_lower", "_upper"))
        table[title] = [
            f"{viz.amount(value)} {interval_text(low, high)}" if value == value else "—"
            for value, low, high in zip(*ends, strict=True)
        ]
    table = table[table["insertion − deletion"].notna()]
    table = table.sort_values("insertion − deletion", ascending=False)
    table["insertion − deletion"] = [viz.amount(value) for value in table["insertion − deletion"]]
    st.table(table, border="horizontal", hide_index=True)
    st.caption(plain(result["insertion"].attrs["convention"]))

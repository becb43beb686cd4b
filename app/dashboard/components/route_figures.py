"""The routes of an answer: which stream feeds which, and the heads that carry most."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st
import xarray as xr

from headscope import viz
from headscope.analyses._runtime.results import label, top
from headscope.app.dashboard import cache
from headscope.app.dashboard.components import picked_head
from headscope.app.dashboard.components.plain import plain
from headscope.app.report.page import is_doubtful
from headscope.app.report.scores import interval_text

USAGE = "head_usage"
LINKS, LINKED = 120, 6
"""Strongest links that are drawn, and heads that are linked."""


def draw(key: cache.RunKey, result: xr.Dataset, name: str) -> None:
    """Draw the flow of the shown prompt, and the heads that carry most over all prompts."""
    (st.warning if is_doubtful(result) else st.markdown)(plain(result.attrs.get("note", "")))
    st.plotly_chart(
        sankey(result), key="routes",
        config={"displaylogo": False, "toImageButtonOptions": {"filename": f"{name}-routes"}},
        alt="Routes to the answer: tokens at the left, the answer's position at the right; the "
        "table below names the heads that carry most.",
    )  # fmt: skip
    usage = result[USAGE]
    heads = top(usage.values, LINKED)
    ends = (result[f"{USAGE}_{end}"].values for end in ("lower", "upper"))
    low, high = ends
    st.table(
        pd.DataFrame(
            {
                "head": [label(head) for head in heads],
                "share of the importance": [viz.amount(usage.values[head]) for head in heads],
                "95 % interval": [interval_text(low[head], high[head]) for head in heads],
            }
        ),
        border="horizontal", hide_index=True,
    )  # fmt: skip
    with st.container(horizontal=True):
        for head in heads:
            run = Path(key.path).name
            picked_head.link(f"Open {label(head)} in Heads", run, head, f"routes.{USAGE}")


def sankey(result: xr.Dataset) -> Any:
    """Draw what flows from layer to layer, of all ways between two positions together.

    Nodes are positions of the residual stream before every layer; the widest links of the graph
    are drawn.
    """
    route = result["route"]
    parts = ("source_layer", "source_position", "target_layer", "target_position")
    table = pd.DataFrame({part: route[part].values for part in parts})
    table["value"], table["way"] = route.values, route["way"].values
    # An MLP stays at its position, in the middle of a block that other links cross already.
    table = table[table["way"] != "MLP"]
    grouped = table.groupby(list(parts))
    links = grouped["value"].sum().reset_index()
    links["ways"] = grouped["way"].agg(lambda ways: ", ".join(dict.fromkeys(ways))).values
    links = links.nlargest(LINKS, "value")
    sides = [list(zip(links[f"{end}_layer"], links[f"{end}_position"], strict=True))
             for end in ("source", "target")]  # fmt: skip
    nodes = sorted({*sides[0], *sides[1]})
    index = {node: at for at, node in enumerate(nodes)}
    tokens = result["token"].values.tolist()
    last = max(layer for layer, _ in nodes) or 1
    most = max(position for _, position in nodes) or 1
    figure = go.Figure(
        go.Sankey(
            arrangement="snap",
            node={
                "label": [viz.visible(str(tokens[position])) for _, position in nodes],
                "x": [float(np.clip(layer / last, 0.01, 0.99)) for layer, _ in nodes],
                "y": [float(np.clip(position / most, 0.01, 0.99)) for _, position in nodes],
                "customdata": [f"before layer {layer}" for layer, _ in nodes],
                "hovertemplate": "%{label}, %{customdata}: %{value:.3g}<extra></extra>",
                "pad": 6, "thickness": 10, "color": "#5b6470",
            },
            link={
                "source": [index[node] for node in sides[0]],
                "target": [index[node] for node in sides[1]],
                "value": links["value"].tolist(),
                "customdata": links["ways"].tolist(),
                "hovertemplate": "%{source.label} → %{target.label}: %{value:.3g} by "
                "%{customdata}<extra></extra>",
                "color": "rgba(194, 87, 12, 0.35)",
            },
        )
    )  # fmt: skip
    figure.update_layout(height=520, margin={"l": 8, "r": 8, "t": 8, "b": 8})
    return figure

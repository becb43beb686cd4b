"""Figures of heads: ranked with their intervals, and by two scores against each other."""

from __future__ import annotations

import html
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from headscope import viz
from headscope.app.exports.importance_table import ABOVE, DETECTABLE, NONE
from headscope.app.report.scores import TOO_FEW, interval_text

# Colours that are distinct on light and dark pages; shapes say the same.
LOOKS = {
    ABOVE: ("#d9822b", "circle"), DETECTABLE: ("#3f7fc4", "diamond"),
    NONE: ("#8a929c", "circle-open"), TOO_FEW: ("#8a929c", "x-thin-open"),
}  # fmt: skip
ROW = 24
LEFT, TOP, BOTTOM = 60, 40, 90


def dots(table: pd.DataFrame, method: str, units: str, null: float, picked: str) -> Any:
    """Draw the heads of a table by a method, the first one on top, with intervals and the null."""
    figure = go.Figure()
    for verdict, (colour, symbol) in LOOKS.items():
        rows = table[table["verdict"] == verdict]
        if rows.empty:
            continue
        values, lower, upper = (rows[f"{method}{end}"] for end in ("", "_lower", "_upper"))
        is_picked = (rows["name"] == picked).to_numpy()
        figure.add_trace(
            go.Scatter(
                x=values, y=rows["name"], mode="markers", name=f"{verdict} ({len(rows)})",
                error_x={"type": "data", "symmetric": False, "array": upper - values,
                         "arrayminus": values - lower, "color": colour, "thickness": 2},
                marker={"color": colour, "symbol": symbol, "size": np.where(is_picked, 15, 10),
                        "line": {"width": np.where(is_picked, 3, 2).tolist(), "color": colour}},
                customdata=rows[["name"]].to_numpy().tolist(),
                hovertext=[
                    f"<b>{name}</b><br>{viz.measured(value, units)} {interval_text(low, high)}"
                    f"<br>{verdict}"
                    for name, value, low, high in zip(
                        rows["name"], values, lower, upper, strict=True
                    )
                ],
                hovertemplate="%{hovertext}<extra></extra>",
            )
        )  # fmt: skip
    if np.isfinite(null):
        figure.add_vline(
            null, line={"dash": "dash", "width": 2, "color": "#8a929c"},
            annotation={"text": f"null {viz.measured(null, units)}", "yref": "paper", "y": 1,
                        "yanchor": "bottom"},
        )  # fmt: skip
    figure.update_layout(
        height=TOP + BOTTOM + ROW * len(table),
        margin={"l": LEFT, "r": 10, "t": TOP, "b": BOTTOM},
        xaxis={"title": {"text": f"lost without the head ({units})"}, "zeroline": True},
        yaxis={
            "type": "category", "categoryorder": "array", "range": [len(table) - 0.5, -0.5],
            "categoryarray": table["name"].tolist(),
            "tickvals": table["name"].tolist(),
            "ticktext": [f"<b>{name}</b>" if name == picked else name for name in table["name"]],
        },
        # Half a row: a click beside a mark never goes to the row of another one.
        hoverdistance=ROW // 2,
        legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
    )  # fmt: skip
    return figure


def scatter(
    across: xr.DataArray,
    up: xr.DataArray,
    titles: Sequence[str],
    named: Collection[str],
    picked: str,
    *,
    diagonal: bool = False,
) -> Any:
    """Draw every head by two scores; some are named, and the picked one stands out.

    Heads that one of them lacks are left out. With ``diagonal`` both axes are alike, and a line
    says where the scores are equal.
    """
    names = np.array(
        [
            [viz.head_name(layer, head) for head in across["head"].values.tolist()]
            for layer in across["layer"].values.tolist()
        ]
    )
    sides = [side.transpose("layer", "head").values.astype(float) for side in (across, up)]
    present = np.isfinite(sides[0]) & np.isfinite(sides[1])
    x, y = (side[present] for side in sides)
    labels, layers = names[present], np.nonzero(present)[0]
    is_picked = labels == picked
    units = [str(side.attrs.get("units", "")) for side in (across, up)]
    figure = go.Figure()
    if diagonal and present.any():
        ends = [float(min(x.min(), y.min())), float(max(x.max(), y.max()))]
        line = {"dash": "dot", "color": "#8a929c"}
        figure.add_scatter(x=ends, y=ends, mode="lines", line=line, hoverinfo="skip")
    shown = is_picked | np.isin(labels, list(named))
    figure.add_trace(
        go.Scatter(
            x=x, y=y, mode="markers+text", textposition="top center",
            text=np.where(shown, labels, ""), hovertext=labels,
            customdata=labels[:, None].tolist(),
            marker={
                "size": np.where(is_picked, 16, 9),
                "symbol": np.where(is_picked, "diamond", "circle"),
                "color": layers, "colorscale": "Viridis", "cmin": 0, "cmax": max(len(names) - 1, 1),
                "line": {"width": 1, "color": "rgba(128,128,128,0.8)"},
                "colorbar": {"title": {"text": "layer", "side": "right"}, "thickness": 14,
                             "tickformat": "d", "nticks": min(len(names), 8)},
            },
            hovertemplate="<b>%{hovertext}</b><br>"
            f"%{{x:.3~r}} {units[0]}, %{{y:.3~r}} {units[1]}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_layout(
        height=440, margin={"l": 60, "r": 10, "t": 20, "b": 50}, showlegend=False,
        xaxis_title=_axis(titles[0], units[0]), yaxis_title=_axis(titles[1], units[1]),
    )  # fmt: skip
    return figure


def _axis(title: str, units: str) -> str:
    return html.escape(f"{title} ({units})" if units else title, quote=False)

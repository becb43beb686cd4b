"""The first heads of the chosen score, in order, to walk through."""

from typing import Any

import numpy as np
import numpy.typing as npt
import streamlit as st

from headscope import viz
from headscope.app.dashboard import state
from headscope.app.dashboard.components.browser_view import mount
from headscope.app.report.head_summary import standing
from headscope.app.report.scores import Score, interval_text
from headscope.viz.component.row_list import Row, row_list

MOST, FIRST = 50, 10


def draw(chosen: Score, at: tuple[int, int], among: npt.NDArray[np.bool_] | None) -> None:
    """List the first heads of a score; a number says how many, a pick opens one.

    ``among`` tells which heads (layer, head) to list; None is all.
    """
    heads = chosen.array.size
    if heads > 1:
        most = min(MOST, heads)
        # Not the field of Importance, which offers other numbers: links carry both.
        state.take("first", range(1, most + 1), min(FIRST, most))
        st.number_input("Top N", 1, most, step=1, key="first", persist_state="session")
    rows = _rows(chosen, among, int(st.session_state.get("first", 1)))
    if not rows:
        st.caption("No head has a value.")
        return
    mount(row_list(f"Heads by {chosen.title}", {"": rows}, list(at)), "finder", pick=_pick)


def _rows(chosen: Score, among: npt.NDArray[np.bool_] | None, count: int) -> list[Row]:
    ranks = np.asarray(chosen.ranks().values, dtype=float)
    if among is not None:
        ranks = np.where(among, ranks, np.nan)
    order = np.argsort(ranks, axis=None, kind="stable")[: min(count, np.isfinite(ranks).sum())]
    units = str(chosen.array.attrs.get("units", ""))
    largest = float(np.nanmax(np.abs(chosen.array.values), initial=0)) or 1.0
    rows = []
    for layer, head in (divmod(int(index), ranks.shape[1]) for index in order):
        entry = standing(chosen, layer, head)
        assert entry is not None
        ends = [end[layer, head] for end in (chosen.lower, chosen.upper) if end is not None]
        interval = f" {interval_text(*ends)}" if ends else ""
        rows.append(
            Row(
                [layer, head], str(entry.rank), viz.amount(entry.value),
                name=viz.head_name(layer, head), share=abs(entry.value) / largest,
                hint=f"{viz.measured(entry.value, units)}{interval}, {entry.rank_text}",
            )
        )  # fmt: skip
    return rows


def _pick(at: Any) -> None:
    state.select_head(int(at[0]), int(at[1]))

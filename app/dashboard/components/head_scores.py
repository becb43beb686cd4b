"""All scores of one head with ranks and intervals, by analysis, the causal ones first."""

from collections.abc import Mapping, Sequence
from itertools import groupby

import pandas as pd
import streamlit as st
import xarray as xr

from headscope import analyses, viz
from headscope.analyses._interventions.next_token_loss import predicts
from headscope.app.dashboard.components import score_picker
from headscope.app.dashboard.components.plain import plain
from headscope.app.report.head_summary import standing
from headscope.app.report.scores import Score, interval_text


def draw(
    scores: Mapping[str, Score], capture: xr.Dataset, layer: int, head: int, chosen: Score
) -> None:
    """Draw a table for each analysis, folded but for that of the chosen score."""
    st.caption(score_picker.LEGEND)
    if not any(score.is_causal for score in scores.values()):
        hint = "; `headscope analyze RUN importance` measures them"
        st.info(f"No causal score in this run{hint if scores_answers(capture) else ''}.")
    grouped = groupby(scores.values(), key=lambda score: score.key.split(".", 1)[0])
    tables = [
        (name, sorted(members, key=lambda score: not score.is_causal)) for name, members in grouped
    ]
    for name, members in sorted(tables, key=lambda table: not table[1][0].is_causal):
        marks = " ".join(sorted({score_picker.mark(score) for score in members}))
        summary = plain(analyses.summary(name)) if name in analyses.names() else ""
        with st.expander(f"{marks} **{plain(name)}** {summary}", expanded=chosen in members):
            st.table(_rows(members, layer, head), border="horizontal", hide_index=True)
            for score in members:
                st.caption(f"`{score.key}`: {plain(score.tooltip)}")


def scores_answers(capture: xr.Dataset) -> bool:
    """Return whether a model predicts the next token of one text, so that answers can be scored."""
    return capture.attrs.get("attention", "self") == "self" and predicts(capture)


def _rows(members: Sequence[Score], layer: int, head: int) -> pd.DataFrame:
    rows = []
    for score in members:
        entry = standing(score, layer, head)
        ends = [end for end in (score.lower, score.upper) if end is not None]
        units = str(score.array.attrs.get("units", ""))
        rows.append(
            {
                "": score_picker.mark(score),
                "score": plain(score.title),
                "value": viz.measured(entry.value if entry else float("nan"), units),
                "rank": entry.rank_text if entry else "",
                "effect": score.effect(f"L{layer}H{head}"),
                "95 % interval": interval_text(*(end[layer, head] for end in ends)) if ends else "",
            }
        )
    table = pd.DataFrame(rows)
    return table if any(score.is_causal for score in members) else table.drop(columns="effect")

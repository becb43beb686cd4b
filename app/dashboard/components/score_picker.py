"""The score that the heads are seen by: searchable, by analysis, causal or correlational."""

from collections.abc import Mapping

import streamlit as st

from headscope.app.dashboard import state
from headscope.app.dashboard.components.plain import plain
from headscope.app.report.scores import Score

MARKS = {True: "◆", False: "○"}
LEGEND = "◆ causal, from an intervention · ○ correlational"


def choose(scores: Mapping[str, Score], leading: str) -> Score:
    """Draw the selection of a score; the default is the run's main one."""
    state.take("by", list(scores), leading, decides=True)
    by = st.selectbox(
        "Score", list(scores), key="by", persist_state="session",
        format_func=lambda name: _label(scores[name]), help=f"Type to search. {LEGEND}.",
    )  # fmt: skip
    return scores[by]


def mark(score: Score) -> str:
    """Return the sign of causal or of correlational scores."""
    return MARKS[score.is_causal]


def _label(score: Score) -> str:
    # With the name of the variable: who types "induction" finds it, whatever its title says.
    analysis, variable = score.key.split(".", 1)
    return f"{analysis} {mark(score)} {score.title} · {variable}"


def caption(score: Score) -> str:
    """Describe what the picked score is, its identifier last."""
    return f"{mark(score)} {plain(score.tooltip)} · {score.key}"

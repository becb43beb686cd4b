"""Filters of the dashboard: the heads that analyses name, in the words of the survey."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import streamlit as st
import xarray as xr
from numpy.typing import NDArray

from headscope import viz
from headscope.analyses._runtime.taxonomy import NO_STAGE, STAGES
from headscope.analyses._stats.effect_size import LEAST_PROMPTS
from headscope.app.dashboard import state
from headscope.app.report.head_kinds import collect
from headscope.app.report.scores import TOO_FEW, Score

SURVEY = "Attention Heads of Large Language Models: A Survey"
CAUSAL, LOOKS = "causal", "correlational only"
ANY, ALL = "any of them", "all of them"
EVIDENCE = {
    CAUSAL: "without it something changes: an effect above its null, among all heads",
    LOOKS: "no causal score of this run tells the head from one without effect",
}


def causal(scores: Mapping[str, Score]) -> frozenset[str]:
    """Return the heads that some intervention shows to have an effect."""
    return frozenset().union(*(score.with_effect for score in scores.values()))


def evidence(scores: Mapping[str, Score], heads: int) -> list[str]:
    """List the kinds of evidence that some of so many heads has."""
    changed = len(causal(scores))
    return [kind for kind, count in ((CAUSAL, changed), (LOOKS, heads - changed)) if count]


def choose(results: Mapping[str, xr.Dataset], scores: Mapping[str, Score]) -> NDArray[Any] | None:
    """Draw the filters of heads; return the grid of those chosen, or None for all."""
    kinds = collect(results)
    grid = next(iter(scores.values())).array
    all_stages = {kind.stage for kind in kinds.values()}
    stages = [stage for stage in (*STAGES, NO_STAGE) if stage in all_stages]
    names = _names(grid)
    offered = evidence(scores, names.size)
    with st.expander("Filter the heads", icon=":material/filter_alt:"):
        types = _multiselect(
            "Head type", "type", list(kinds), "Named so by an analysis of this run."
        )
        combined: str | None = ANY
        if len(types) > 1:
            state.take("types", (ANY, ALL))
            combined = st.segmented_control(
                "Heads that are", (ANY, ALL), key="types", persist_state="session", required=True
            )
        served = _multiselect("Stage", "stage", stages, SURVEY)
        methods = sorted({kind.method for kind in kinds.values()})
        chosen_methods = _multiselect(
            "Method", "method", methods, f"How the heads were named. {SURVEY}"
        )
        state.take("evidence", offered, None)
        shown = st.segmented_control(
            "Evidence", offered, key="evidence", persist_state="session",
            help="; ".join(f"{name}: {text}" for name, text in EVIDENCE.items()),
        )  # fmt: skip
        few = [key for key, score in scores.items() if score.has_too_few]
        if few:
            st.caption(f"{TOO_FEW} for {', '.join(few)}: {LEAST_PROMPTS} or more can tell")
        if not (types or served or chosen_methods or shown):
            return None
        among = np.ones(names.shape, dtype=bool)
        for selected, field in ((types, "name"), (served, "stage"), (chosen_methods, "method")):
            if selected:
                heads = [kind.heads for kind in kinds.values() if getattr(kind, field) in selected]
                every = field == "name" and combined == ALL
                kept = frozenset.intersection(*heads) if every else frozenset().union(*heads)
                among &= np.isin(names, list(kept))
        if shown:
            changed = np.isin(names, list(causal(scores)))
            among &= changed if shown == CAUSAL else ~changed
        listed = ", ".join(names[among]) or "no head is all of this"
        st.caption(f"{among.sum()} of {among.size} heads: {listed}")
    return among


def _names(grid: xr.DataArray) -> NDArray[Any]:
    layers, heads = (grid[dim].values.tolist() for dim in ("layer", "head"))
    return np.array([[viz.head_name(layer, head) for head in heads] for layer in layers])


def _multiselect(title: str, key: str, options: list[str], help_text: str) -> list[str]:
    """Draw the selection of some options."""
    state.take(key, options, [])
    return st.multiselect(
        title, options, key=key, persist_state="session", help=help_text, placeholder="any"
    )

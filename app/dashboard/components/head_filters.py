"""Filters of the dashboard: the heads that analyses name, in the words of the survey."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st
import xarray as xr
from numpy.typing import NDArray

from headscope import viz
from headscope.analyses._runtime.taxonomy import STAGES, TERMS
from headscope.app.dashboard import state
from headscope.app.report.scores import Score

SURVEY = "Attention Heads of Large Language Models: A Survey"
CAUSAL, LOOKS = "causal", "correlational only"
EVIDENCE = {
    CAUSAL: "without it something changes: the interval of a causal score leaves out 0",
    LOOKS: "no causal score of this run tells the head from one without effect",
}


@dataclass(frozen=True)
class Kind:
    """A type of head, its stage in the survey, if any, and the heads that a run names so."""

    name: str
    stage: str
    heads: frozenset[str]


def collect(results: Mapping[str, xr.Dataset]) -> dict[str, Kind]:
    """List the types that heads of a run have, as ``heads_by_type`` of the results says.

    Those of the survey come first, the others are called ``name (analysis)``.

    >>> result = xr.Dataset(attrs={"heads_by_type": {"induction": ["L3H0"], "sharp": ["L0H1"]}})
    >>> [(kind.name, kind.stage) for kind in collect({"example": result}).values()]
    [('induction', 'latent reasoning'), ('sharp (example)', '')]
    """
    found: dict[str, Kind] = {}
    for analysis, result in results.items():
        for key, heads in dict(result.attrs.get("heads_by_type", {})).items():
            word = str(key).replace("_", "-")
            term = TERMS.get(word)
            name = word if term else f"{key} ({analysis})"
            before = found[name].heads if name in found else frozenset()
            if heads:
                found[name] = Kind(name, term.stage if term else "", before | frozenset(heads))
    ordered = sorted(found.values(), key=lambda one: (not one.stage, one.stage, one.name))
    return {kind.name: kind for kind in ordered}


def causal(scores: Mapping[str, Score], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Mark the heads (layer, head) for which the interval of some causal score leaves out 0."""
    known = np.zeros(shape, dtype=bool)
    for score in scores.values():
        if score.is_causal and score.lower is not None and score.upper is not None:
            known |= (score.lower.values > 0) | (score.upper.values < 0)
    return known


def choose(results: Mapping[str, xr.Dataset], scores: Mapping[str, Score]) -> NDArray[Any] | None:
    """Ask which heads to look at; returns their grid, or None for all."""
    kinds = collect(results)
    grid = next(iter(scores.values())).array
    stages = [stage for stage in STAGES if any(kind.stage == stage for kind in kinds.values())]
    with st.expander("Filter the heads", icon=":material/filter_alt:"):
        types = _ask("Head type", "type", list(kinds), "Named so by an analysis of this run.")
        served = _ask("Stage", "stage", stages, SURVEY)
        state.warn_bad_param("evidence", list(EVIDENCE))
        evidence = st.segmented_control(
            "Evidence", list(EVIDENCE), key="evidence", bind="query-params",
            help="; ".join(f"{name}: {what}" for name, what in EVIDENCE.items()),
        )  # fmt: skip
        if not (types or served or evidence):
            return None
        names = _names(grid)
        among = np.ones(names.shape, dtype=bool)
        for wanted, field in ((types, "name"), (served, "stage")):
            if wanted:
                heads = [kind.heads for kind in kinds.values() if getattr(kind, field) in wanted]
                among &= np.isin(names, list(frozenset().union(*heads)))
        if evidence:
            changed = causal(scores, (names.shape[0], names.shape[1]))
            among &= changed if evidence == CAUSAL else ~changed
        listed = ", ".join(names[among]) or "no head is all of this"
        st.caption(f"{among.sum()} of {among.size} heads: {listed}")
    return among


def _names(grid: xr.DataArray) -> NDArray[Any]:
    layers, heads = (grid[dim].values.tolist() for dim in ("layer", "head"))
    return np.array([[viz.head_name(layer, head) for head in heads] for layer in layers])


def _ask(title: str, key: str, options: list[str], what: str) -> list[str]:
    """Ask for some of the options; those of the link that are not there are named."""
    state.warn_bad_param(key, options)
    return st.multiselect(
        title, options, key=key, bind="query-params", help=what, placeholder="any"
    )

"""The difference of two runs in one score: what can be compared, and its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import streamlit as st

from headscope.app.dashboard import cache, capture_scores
from headscope.app.dashboard.components import run_list
from headscope.app.exports import tables
from headscope.app.report.scores import GRID, Score, collect
from headscope.app.run_comparison import CAPTURE, Pair, compare_score, record, shared

# Heads of either run whose overlap is stated, as `headscope compare` does by default.
TOP = 5


class Compared(NamedTuple):
    """One score of two runs, the difference second − first, and its summary."""

    first: Score
    second: Score
    difference: Score
    row: dict[str, Any]


def pairs(first: cache.RunKey, second: cache.RunKey) -> dict[str, Pair]:
    """List what can be compared: scores of analyses that both have, and statistics of captures."""
    (_, capture_a, results_a), (_, capture_b, results_b) = cache.run(first), cache.run(second)
    statistics = {
        f"{CAPTURE}.{name}": (capture_a, capture_b, name)
        for name in capture_scores.STATISTICS
        if name in capture_a and name in capture_b and capture_a[name].dims == capture_b[name].dims
    }
    analyzed = shared({**results_a, CAPTURE: capture_a}, {**results_b, CAPTURE: capture_b})
    return analyzed | statistics


@st.cache_data(max_entries=32, show_spinner="Comparing …")
def compare(
    first: cache.RunKey, second: cache.RunKey, by: str, across: tuple[str, ...]
) -> Compared:
    """Compare one score of two runs, as `headscope compare` does."""
    pair = pairs(first, second)[by]
    change, row = compare_score(by, pair, TOP, across)
    analysis, name = by.split(".", 1)
    sides = [
        collect(
            {CAPTURE: capture_scores.summarize(result)}
            if analysis == CAPTURE
            else {analysis: result}
        )
        for result in pair[:2]
    ]
    change = change.drop_vars(f"{name}_agreement").assign_coords(
        {dim: sides[0][by].array[dim] for dim in GRID}
    )
    return Compared(sides[0][by], sides[1][by], collect({analysis: change})[by], row)


def draw_downloads(compared: Compared, path: Path, other: Path, names: list[list[str]]) -> None:
    """Offer the differences of all heads as files; JSON is what the command line writes."""
    table = pd.DataFrame({"name": np.array(names).ravel()})
    table[["layer", "head"]] = list(np.ndindex(compared.first.array.shape))
    about = str(compared.first.array.attrs.get("convention", ""))
    meaning = {"units": compared.row["units"], "convention": about}
    meanings: dict[str, dict[str, Any]] = {}
    for label, score in (
        ("a", compared.first),
        ("b", compared.second),
        ("difference", compared.difference),
    ):
        for end, array in (("", score.array), ("_lower", score.lower), ("_upper", score.upper)):
            if array is not None:
                table[f"{label}{end}"] = array.values.ravel()
                meanings[f"{label}{end}"] = meaning
    table["changed"] = table["name"].isin(compared.row["changed"])
    columns = {
        "run_a": path.name, "run_b": other.name, "score": compared.row["score"],
        "pairing": compared.row["pairing"], "units": compared.row["units"],
    }  # fmt: skip
    labelled = tables.labelled(table, meanings, columns)
    models = [run_list.card(cache.run_key(run)).get("model", "") for run in (path, other)]
    runs = list(zip((path, other), models, strict=True))
    with st.container(horizontal=True):
        for kind in tables.FORMATS:
            data = (
                json.dumps(record(runs, [compared.row]), indent=1).encode()
                if kind == "json"
                else tables.encode_table(kind, labelled, {})
            )
            st.download_button(
                tables.LABELS[kind], data,
                f"{path.name}-{other.name}-{compared.row['score']}.{kind}",
                key=f"download_{kind}", icon=":material/download:", on_click="ignore",
                help="The differences of all heads. JSON is what headscope compare writes.",
            )  # fmt: skip

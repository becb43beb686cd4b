"""Which heads a task needs: ranked with their null, by every method, pruned, and as a report."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st
import xarray as xr

from headscope import viz
from headscope.analyses._stats.effect_size import LEAST_PROMPTS
from headscope.app.dashboard import cache, state
from headscope.app.dashboard.components import (
    head_figures,
    method_agreement,
    picked_head,
    report_form,
    run_button,
    run_picker,
    what_if,
)
from headscope.app.dashboard.components.plain import error, plain
from headscope.app.exports import importance_table, tables
from headscope.app.report.answer import IMPORTANCE, MAIN, METHODS, Importance, importance
from headscope.app.report.page import is_doubtful
from headscope.app.report.scores import interval_text
from headscope.kernels.errors import HeadscopeError
from headscope.kernels.formatting import ordinal

TITLE = "Importance"
SHOWN = (10, 20, 40, 80)
TABLE = "importance_table"
PRUNING = "pruning"
CURVES = ("curve", "group_curve")


def draw() -> None:
    """Draw the screen for the run that the link names."""
    st.title(TITLE)
    read = run_picker.read()
    if read is None:
        return
    key, capture, results, name = read
    try:
        summary = importance(results)
    except HeadscopeError as refusal:
        error(refusal)
        return
    complaints = st.container()
    if summary is None:
        run_button.offer(key, IMPORTANCE, "Which heads matter was not measured on this run yet.")
    else:
        _header(summary, results[IMPORTANCE])
        _heads(key, capture, results, summary, f"{name}-importance")
    st.header("Pruning")
    _pruning(key, results, f"{name}-pruning")
    st.header("Report")
    report_form.draw(key, f"{name}-report")
    with complaints:
        state.show_warnings()


def _header(summary: Importance, result: xr.Dataset) -> None:
    """Show the task, the metric, the prompts, the intact model's score, and the null."""
    units = plain(summary.units)
    null = (
        f" A head counts as important where the interval of its mean ablation lies above "
        f"**{summary.null} {units}**, the null: what the largest head reaches when every prompt is "
        "asked for the answer of another one."
        if summary.null
        else ""
    )
    st.markdown(
        f"**{plain(summary.conclusion)}.** Task **{plain(summary.task)}**, "
        f"**{summary.n} prompts**; metric: {plain(summary.metric)}. The intact model reaches "
        f"**{summary.intact} {units}** {summary.interval}.{null}"
        + (f" {summary.measured}; the others are not measured." if summary.measured else "")
    )
    if summary.n < LEAST_PROMPTS:
        st.warning(
            f"{summary.n} prompts rank heads and cannot call one important. The analysis takes "
            f"{LEAST_PROMPTS} where nothing else is set: run it again below.",
            icon=":material/scale:",
        )
    elif is_doubtful(result):
        st.warning(plain(result.attrs.get("verdict_text", "")), icon=":material/warning:")


def _heads(
    key: cache.RunKey,
    capture: xr.Dataset,
    results: Mapping[str, xr.Dataset],
    summary: Importance,
    name: str,
) -> None:
    """Draw the heads: ranked, by two methods, what if some were removed, and as a table."""
    result, table = results[IMPORTANCE], importance_table.rows(results)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        picked = picked_head.select(table["name"].tolist())
        state.take("top", SHOWN, SHOWN[1])
        top = st.segmented_control(
            "Heads shown", SHOWN, key="top", persist_state="session", required=True
        )
    with st.container(key="stack_ranked"):
        left, right = st.columns([3, 2], gap="medium")
    units = str(result[MAIN].attrs["units"])
    ranked = table[table[MAIN].notna()]
    shown = ranked[(np.arange(len(ranked)) < int(top or 0)) | (ranked["name"] == picked)]
    with left:
        st.subheader("Ranked by mean ablation")
        figure = head_figures.dots(shown, MAIN, units, float(result["null_ablation"]), picked)
        picked_head.chart(
            figure,
            "ranked",
            name,
            "Heads ranked by mean ablation; the table below has the numbers.",
        )
        st.caption(plain(f"{METHODS[MAIN].capitalize()}: {result[MAIN].attrs['convention']}."))
        meanings = importance_table.VERDICTS.items()
        present = set(shown["verdict"])
        st.caption(
            plain(". ".join(f"{verdict}: {why}" for verdict, why in meanings if verdict in present))
        )
    with right:
        _card(key, table, result, picked)
    st.header("Do the methods agree?")
    with st.container(key="stack_methods"):
        method_agreement.draw(result, picked, name)
    st.header("What if heads were removed?")
    _what_if(key, capture, table, picked)
    st.header("All heads")
    _table(key, table, result, name)
    if summary.n < LEAST_PROMPTS:
        run_button.offer(key, IMPORTANCE, f"More than {summary.n} prompts tell which heads matter.")


def _card(key: cache.RunKey, table: pd.DataFrame, result: xr.Dataset, picked: str) -> None:
    """Show the result of every method for the picked head."""
    [row] = table[table["name"] == picked].to_dict("records")
    st.subheader(picked)
    ranked = int(table["rank"].notna().sum())
    rank = ""
    if not pd.isna(row["rank"]):
        tied = int((table["rank"] == row["rank"]).sum())
        rank = f", {ordinal(int(row['rank']), tied)} of {ranked}"
    st.markdown(f"**{row['verdict']}**{rank}")
    why = importance_table.VERDICTS[row["verdict"]]
    st.caption(plain(f"{why[0].upper()}{why[1:]}."))
    if row["types"]:
        st.markdown(f"Types: {plain(row['types'])}")
    methods = [method for method in METHODS if method in result]
    st.table(
        pd.DataFrame(
            {
                "method": [METHODS[method] for method in methods],
                "value": [
                    viz.measured(row[method], str(result[method].attrs.get("units", "")))
                    for method in methods
                ],
                "95 % interval": [
                    interval_text(row[f"{method}_lower"], row[f"{method}_upper"])
                    for method in methods
                ],
            }
        ),
        border="horizontal", hide_index=True,
    )  # fmt: skip
    at = int(row["layer"]), int(row["head"])
    run = Path(key.path).name
    picked_head.link(f"Open {picked} in Heads", run, at, f"{IMPORTANCE}.{MAIN}")


def _what_if(key: cache.RunKey, capture: xr.Dataset, table: pd.DataFrame, picked: str) -> None:
    """Let the user remove the picked head, alone or with all important ones."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        prompts = range(capture.sizes["prompt"])
        state.take("prompt", prompts)
        number = st.selectbox("Prompt of the run", prompts, key="prompt", persist_state="session")
        important = table[table["verdict"] == importance_table.ABOVE]["name"].tolist()
        also = st.checkbox(
            f"With all {len(important)} above the null", key="remove_important",
            disabled=not important,
        )  # fmt: skip
    if "token" in capture.coords:
        tokens = capture["token"].values[number, : int(capture["length"][number])].tolist()
        # Tokenizers of whole words leave the spaces out.
        text = ("" if any(token[:1].isspace() for token in tokens) else " ").join(tokens)
        st.caption(f"The text in view: {plain(text)}")
    [row] = table[table["name"] == picked].to_dict("records")
    where = {"run": Path(key.path).name, "pick": picked, "prompt": number}
    what_if.draw(
        key, capture, int(row["layer"]), int(row["head"]), others=important if also else (),
        opens=(IMPORTANCE, where, "See the answer"),
    )  # fmt: skip


def _table(key: cache.RunKey, table: pd.DataFrame, result: xr.Dataset, name: str) -> None:
    """Draw all heads as a table that can be sorted, and offer it as files."""
    methods = [method for method in METHODS if method in result]
    shown = table[["rank", "name", "verdict", "types", *methods]].copy()
    shown.insert(
        5, "95 % interval",
        [
            interval_text(*ends)
            for ends in zip(table[f"{MAIN}_lower"], table[f"{MAIN}_upper"], strict=True)
        ],
    )  # fmt: skip
    st.dataframe(
        shown, key=TABLE, hide_index=True, height=360, selection_mode="single-row",
        on_select=lambda: _pick(table["name"].tolist()),
        alt="All heads: rank by mean ablation, verdict, types, and what every method says.",
        column_config={
            "name": st.column_config.TextColumn("head"),
            "verdict": st.column_config.TextColumn(
                help="; ".join(f"{verdict}: {text}" for verdict, text in
                               importance_table.VERDICTS.items())
            ),
            **{
                method: st.column_config.NumberColumn(
                    f"{METHODS[method]} ({result[method].attrs.get('units', '')})", format="%.3g",
                    help=plain(result[method].attrs.get("convention", "")),
                )
                for method in methods
            },
        },
    )  # fmt: skip
    with st.container(horizontal=True):
        for kind, data in _files(key).items():
            st.download_button(
                tables.LABELS[kind], data, f"{name}.{kind}", key=f"download_{kind}",
                icon=":material/download:", on_click="ignore",
                help="All heads and methods with their intervals, units, n, model and run.",
            )  # fmt: skip


def _pick(names: list[str]) -> None:
    if name := state.picked_row(TABLE, names):
        picked_head.pick(name)


@st.cache_data(max_entries=4, show_spinner=False)
def _files(key: cache.RunKey) -> dict[str, bytes]:
    """Encode the table in every format."""
    run, _, results = cache.run(key)
    return {
        kind: importance_table.file(kind, results, run.manifest, run.name)
        for kind in tables.FORMATS
    }


def _pruning(key: cache.RunKey, results: Mapping[str, xr.Dataset], name: str) -> None:
    """Draw what is left of the task while heads go, in several orders and at random."""
    result = results.get(PRUNING)
    if result is None or CURVES[0] not in result:
        run_button.offer(key, PRUNING, "How many heads the task can do without was not measured.")
        return
    note = str(result.attrs.get("note", ""))
    (st.warning if is_doubtful(result) else st.markdown)(plain(note))
    curves = [curve for curve in CURVES if curve in result]
    for column, curve in zip(st.columns(len(curves)), curves, strict=True):
        with column:
            st.plotly_chart(
                viz.draw(result, curve), key=f"pruning_{curve}",
                config={"displaylogo": False,
                        "toImageButtonOptions": {"filename": f"{name}-{curve}", "scale": 2}},
                alt="The metric of the task over the number of removed heads, by order; random "
                "orders stand beside.",
            )  # fmt: skip
            st.caption(plain(result[curve].attrs.get("convention", "")))

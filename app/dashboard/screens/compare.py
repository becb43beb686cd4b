"""Two runs compared head by head, on one colour range and with their difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from headscope import viz
from headscope.analyses.comparison.difference import FIELDS
from headscope.app.dashboard import cache, state
from headscope.app.dashboard.components import (
    head_figures,
    picked_head,
    run_difference,
    run_list,
    run_picker,
)
from headscope.app.dashboard.components.browser_view import mount
from headscope.app.dashboard.components.plain import error, plain
from headscope.app.report.scores import Score, interval_text
from headscope.kernels.errors import HeadscopeError

TITLE = "Compare"
NAMED, LISTED = 5, 10
# Not the score of Heads, which both runs need not have.
BY = "compared"
TABLE = "changed_table"


def draw() -> None:
    """Draw the screen for the two runs and the score that the link names."""
    st.title(TITLE)
    folder = run_picker.opened()
    if folder is None:
        return
    with st.container(key="stack_runs"):
        left, right, third = st.columns(3)
    path = run_picker.choose(folder, left)
    other = _other(path, cache.neighbours(folder), right)
    if other is None:
        st.info(
            f"{plain(path.name)} is the only run here, and this screen compares two. The screen "
            "Runs captures another one. To compare heads of one run, pin them in the screen Heads."
        )
        return
    keys = cache.run_key(path), cache.run_key(other)
    complaints = st.container()
    try:
        scores = _scores(*keys)
        if not scores:
            st.info("The two share no score of heads. Analyze both alike, in the screen Analyses.")
            return
        by = _score(scores, third)
        compared = run_difference.compare(*keys, by, tuple(_across()))
    except HeadscopeError as refusal:
        error(refusal)
        _shapes(keys)
        return
    finally:
        with complaints:
            state.show_warnings()
    _show(compared, path, other, by)


def _other(path: Path, runs: dict[str, Path], container: Any) -> Path | None:
    """Ask for the second run, one of the same layers and heads to begin with."""
    others = [name for name in runs if name != path.name and (runs[name] / cache.MANIFEST).exists()]
    if not others:
        return None
    shape = _shape(path)
    start = next((at for at, name in enumerate(others) if _shape(runs[name]) == shape), 0)
    state.take("other", others, others[start], decides=True)
    return runs[container.selectbox("Held against", others, key="other", persist_state="session")]


def _shape(path: Path) -> str:
    return str(run_list.card(cache.run_key(path)).get("layers × heads", ""))


def _scores(first: cache.RunKey, second: cache.RunKey) -> list[str]:
    """List the scores, causal ones first."""
    pairs = run_difference.pairs(first, second)
    causal = [key for key, (dataset, _, name) in pairs.items()
              if dataset[name].attrs.get("evidence") == "causal"]  # fmt: skip
    return list(dict.fromkeys((*causal, *pairs)))


def _score(scores: list[str], container: Any) -> str:
    state.take(BY, scores, decides=True)
    title = "Score (analysis.variable)"
    return str(container.selectbox(title, scores, key=BY, persist_state="session"))


def _across() -> list[str]:
    state.take("across", FIELDS, [])
    return st.multiselect(
        "May differ", FIELDS, key="across", persist_state="session", placeholder="nothing",
        help="A difference of scores in other units, by other conventions (such as another task or "
        "number of prompts) or options has a meaning only where you say so.",
    )  # fmt: skip


def _shapes(keys: tuple[cache.RunKey, cache.RunKey]) -> None:
    """Show models and shapes of two runs that cannot be compared."""
    st.table(
        pd.DataFrame(
            [
                {name: plain(row.get(name, "")) for name in ("run", "model", "layers × heads")}
                for row in map(run_list.card, keys)
            ]
        ),
        border="horizontal", hide_index=True,
    )  # fmt: skip


def _show(compared: run_difference.Compared, path: Path, other: Path, by: str) -> None:
    """Draw the three grids, the summary of the difference, and both runs against each other."""
    sides = {"A": (compared.first, path), "B": (compared.second, other)}
    names = picked_head.grid_names(compared.first.array)
    ordered = [row["head"] for row in compared.row["heads"]]
    picked = picked_head.select(ordered)
    at = picked_head.indices_of(names, picked)
    st.markdown(_summary(compared, path, other))
    with st.container(key="stack_grids"):
        columns = st.columns(3)
    low, high = _range(compared)
    for column, (letter, (score, run)) in zip(columns, sides.items(), strict=False):
        with column:
            st.markdown(f"**{letter}: {plain(run.name)}**")
            shown = score.array.copy()
            shown.attrs |= {"low": low, "high": high}
            _grid(Score(score.key, shown, score.lower, score.upper), at, names, f"grid_{letter}")
    with columns[2]:
        st.markdown("**B − A**")
        _grid(compared.difference, at, names, "grid_difference")
    st.caption(plain(compared.first.tooltip))
    with st.container(key="stack_compared"):
        left, right = st.columns([3, 2], gap="medium")
    with left:
        figure = head_figures.scatter(
            compared.first.array, compared.second.array, [f"A: {path.name}", f"B: {other.name}"],
            ordered[:NAMED], picked, diagonal=True,
        )  # fmt: skip
        picked_head.chart(
            figure, "compared_scatter", f"{path.name}-{other.name}-{by}",
            "Every head in run A and in run B; those that differ most are named.",
        )  # fmt: skip
    with right:
        _card(compared, picked, at, path, other, by)
    run_difference.draw_downloads(compared, path, other, names)


def _summary(compared: run_difference.Compared, path: Path, other: Path) -> str:
    """Describe, as the command line does, agreement, shared heads, and how many changed."""
    row = compared.row
    parts = [
        f"**{plain(compared.first.title)}**: B ({plain(other.name)}) − A ({plain(path.name)})."
    ]
    if row["agreement"] is not None:
        parts.append(f"Ranks agree with ρ **{viz.amount(row['agreement'])}**.")
    if "top" in row:
        top = row["top"]
        parts.append(
            f"The top {top['heads']} share {len(top['shared'])} "
            f"({', '.join(top['shared']) or 'none'}; by chance p = {viz.amount(top['p_value'])})."
        )
    return " ".join([*parts, plain(row["summary"])])


def _range(compared: run_difference.Compared) -> tuple[float, float]:
    """Return the range of the colours of both runs."""
    ends = [(float(side.array.min()), float(side.array.max()))
            for side in (compared.first, compared.second)]  # fmt: skip
    attrs = compared.first.array.attrs
    low = float(attrs.get("low", min(low for low, _ in ends)))
    return low, float(attrs.get("high", max(high for _, high in ends)))


def _grid(score: Score, at: tuple[int, int], names: list[list[str]], key: str) -> None:
    view = viz.head_grid(score.array, lower=score.lower, upper=score.upper, picked=at)
    mount(view, key, pick=picked_head.pick_cell(names))


def _card(
    compared: run_difference.Compared,
    picked: str,
    at: tuple[int, int],
    path: Path,
    other: Path,
    by: str,
) -> None:
    """Show the picked head in both runs, and list the heads that changed most."""
    st.subheader(picked)
    units = str(compared.first.array.attrs.get("units", ""))
    rows = []
    for label, score in (
        (f"A: {path.name}", compared.first), (f"B: {other.name}", compared.second),
        ("B − A", compared.difference),
    ):  # fmt: skip
        ends = [end[at] for end in (score.lower, score.upper) if end is not None]
        rows.append(
            {
                "": plain(label), "value": viz.measured(float(score.array[at]), units),
                "95 % interval": interval_text(*ends) if ends else "",
            }
        )  # fmt: skip
    st.table(pd.DataFrame(rows), border="horizontal", hide_index=True)
    with st.container(horizontal=True):
        for letter, run in (("A", path), ("B", other)):
            picked_head.link(f"Open {picked} of {letter} in Heads", run.name, at, by)
    st.markdown("**Heads that changed most**")
    listed = compared.row["heads"][:LISTED]
    st.dataframe(
        [
            {
                "head": row["head"],
                f"B − A ({units})": None if row["difference"] is None else
                viz.amount(row["difference"], "+"),
                "95 % interval": "" if row["lower"] is None else
                interval_text(row["lower"], row["upper"]),
                "leaves out 0": "yes" if row["head"] in compared.row["changed"] else "",
            }
            for row in listed
        ],
        key=TABLE, hide_index=True, selection_mode="single-row", height="content",
        on_select=lambda: _pick([row["head"] for row in listed]),
        alt="The heads with the largest differences, with their intervals.",
    )  # fmt: skip


def _pick(names: list[str]) -> None:
    if name := state.picked_row(TABLE, names):
        picked_head.pick(name)

"""The head in short: its causal effect, its types, where rankings differ, and its ranks."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import streamlit as st
import xarray as xr

from headscope import viz
from headscope.app.dashboard import screens
from headscope.app.dashboard.components import score_picker
from headscope.app.dashboard.components.head_scores import scores_answers
from headscope.app.dashboard.components.plain import plain
from headscope.app.report import head_summary
from headscope.app.report.head_kinds import Kind
from headscope.app.report.head_summary import Standing
from headscope.app.report.scores import Score

COLOURS = {"causal": "green", "correlational": "orange", "learned": "blue"}
# Types that are shown; the others are named behind them.
CHIPS = 6
STYLE = """<style>
.standings { border-collapse: collapse; width: 100%; font-size: 13px; table-layout: fixed; }
.standings th, .standings td {
  border: 0; padding: 2px 8px 2px 0; text-align: left; font-weight: normal; vertical-align: top;
  overflow-wrap: anywhere; line-height: 1.35;
}
.standings .bar { width: 20%; }
.standings .place { width: 34%; }
.standings .bar div { background: color-mix(in srgb, currentColor 12%, transparent); height: 9px;
  margin-top: 4px; }
.standings .bar div div { background: color-mix(in srgb, currentColor 62%, transparent);
  margin-top: 0; }
</style>"""


def draw(
    results: Mapping[str, xr.Dataset],
    scores: Mapping[str, Score],
    capture: xr.Dataset,
    layer: int,
    head: int,
    path: Path,
) -> None:
    """Draw the card of a head, by its index in the grid."""
    st.markdown(plain(head_summary.causal_sentence(results, scores, layer, head)))
    if head_summary.causal_score(scores) is None and scores_answers(capture):
        screens.link(
            "analyses", "Measure importance", {"run": path.name, "analysis": "importance"},
            ":material/science:",
        )  # fmt: skip
    heads = next(iter(scores.values())).array.size
    _chips(head_summary.kinds_of(results, viz.head_name(layer, head)), heads)
    if text := head_summary.disagreement(scores, layer, head):
        st.markdown(f":material/warning: {plain(text)}", help=head_summary.RULE)
    if bars := head_summary.highest(scores, layer, head):
        st.html(STYLE + _bars(bars))
        st.caption(
            "Share of the other heads that lie below this one: the best score of each family of "
            f"analyses. {score_picker.LEGEND}."
        )


def _chips(kinds: Sequence[Kind], heads: int) -> None:
    """Draw the types of a head in one line; what most heads are comes last and is grey."""
    if not kinds:
        return
    chips, about = [], []
    for kind in kinds:
        common = 2 * len(kind.heads) > heads
        colour = "gray" if common else COLOURS.get(kind.evidence, "gray")
        checks = [head_summary.CHECKS[state] for state in dict.fromkeys(kind.checks)]
        text = plain(" · ".join([kind.name, kind.evidence, *checks]))
        chips.append(f":{colour}-badge[{text}]")
        where = f"{len(kind.heads)} of {heads} heads; {kind.stage}; {kind.method}"
        about.append(f"**{plain(kind.name)}**: {plain(where)}")
    more = f" and {len(chips) - CHIPS} more" if len(chips) > CHIPS else ""
    st.markdown(" ".join(chips[:CHIPS]) + more, help="\n\n".join(about))


def _bars(bars: Sequence[Standing]) -> str:
    """Write the standings as a table; titles of scores are text."""
    rows = []
    for bar in bars:
        units = str(bar.score.array.attrs.get("units", ""))
        title = html.escape(f"{score_picker.mark(bar.score)} {bar.score.title}")
        tooltip = html.escape(f"{bar.rank_text} · {viz.measured(bar.value, units)}")
        rows.append(
            f'<tr><th scope="row" title="{title}">{title}</th>'
            f'<td class="bar"><div><div style="width: {100 * bar.below:.1f}%"></div></div></td>'
            f'<td class="place" title="{tooltip}">{tooltip}</td></tr>'
        )
    return f'<table class="standings">{"".join(rows)}</table>'

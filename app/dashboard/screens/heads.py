"""Every head of a run by any score, and one head in full."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import streamlit as st
import xarray as xr

from headscope import viz
from headscope.app.dashboard import cache, state
from headscope.app.dashboard.components import (
    compare_tray,
    examples,
    head_card,
    head_detail,
    head_filters,
    head_grid,
    head_scores,
    neuron_view,
    run_picker,
    score_picker,
    share,
    vocabulary_pairs,
    what_if,
)
from headscope.app.dashboard.components.plain import error, plain
from headscope.app.exports import tables
from headscope.app.report import head_summary
from headscope.app.report.scores import Score
from headscope.kernels.errors import HeadscopeError

TITLE = "Heads"
TABS = ("Attention", "Examples", "Scores", "Query-key", "Vocabulary", "What if")
# One column on narrow screens.
NARROW = """<style>
.st-key-score_title h3 { font-size: 1.2rem; padding: 0 0 0.5rem; }
@media (max-width: 1100px) {
  .st-key-heads_columns > [data-testid=stLayoutWrapper] > [data-testid=stHorizontalBlock] {
    flex-direction: column;
  }
  .st-key-heads_columns > [data-testid=stLayoutWrapper] > * > [data-testid=stColumn] {
    width: 100%; flex: none;
  }
}
</style>"""


def draw() -> None:
    """Draw the screen for the run that the link names."""
    folder = cache.folder()
    if folder is None or not (folder / cache.MANIFEST).exists():
        st.title("headscope")
        st.info(
            "There is no run here. `headscope demo` makes one on the bundled model; "
            "`headscope capture MODEL --prompts FILE --out RUN` makes one of yours. "
            "Then `headscope app RUN` opens it."
        )
        return
    path = run_picker.choose(folder, st.sidebar)
    key = cache.run_key(path)
    try:
        run, _, results = cache.run(key)
    except HeadscopeError as refusal:
        error(refusal)
        return
    scores = cache.scores(key)
    if not scores:
        st.info(f"{path.name} has no scores of heads yet: `headscope analyze {path}` makes them.")
        return
    st.html(NARROW)
    complaints = st.container()
    with st.container(key="heads_columns"):
        left, right = st.columns([4, 5], gap="medium")
    with left:
        state.take("view", head_grid.VIEWS)
        chosen = score_picker.choose(scores, head_summary.leading(scores))
    with st.sidebar:
        _head_picker(chosen)
        among = head_filters.choose(results, scores)
        _about(run.manifest, results)
    compare_tray.take(chosen.array.shape)
    layer, head = int(st.session_state["layer"]), int(st.session_state["head"])
    name = f"{str(run.manifest['model']).replace('/', '-')}-{path.name}"
    with left:
        with st.container(key="score_title"):
            st.subheader(plain(chosen.title))
        thumbnails = head_grid.draw(scores, chosen, cache.table(key), name, among)
        _downloads(key, name)
    with right:
        ids = _head_page(key, path, chosen, layer, head, f"{name}-L{layer}H{head}")
    compare_tray.draw(key, scores, chosen, ids)
    if thumbnails is not None and ids is not None:
        with thumbnails:
            head_grid.draw_thumbnails(key, ids, among)
    with complaints:
        state.show_warnings()


def _head_picker(chosen: Score) -> None:
    """Ask for the head; the link names it, else it is the first one of the chosen score."""
    layers, heads = chosen.array.shape
    layer, head = head_summary.top_head(chosen)
    state.take("layer", range(layers), layer)
    state.take("head", range(heads), head)
    st.selectbox("Layer", range(layers), key="layer", persist_state="session")
    st.selectbox("Head", range(heads), key="head", persist_state="session")
    st.caption("Arrow keys move between heads; a click in the grid picks one.")
    columns = [*st.columns(2), *st.columns(2)]
    for column, (key, by_step) in zip(columns, state.MOVES.items(), strict=True):
        column.button(
            key, key=f"go_{key}", shortcut=key, width="stretch",
            on_click=state.select_head, args=state.neighbour(by_step, (layers, heads)),
        )  # fmt: skip


def _head_page(
    key: cache.RunKey, path: Path, chosen: Score, layer: int, head: int, name: str
) -> cache.Tokens | None:
    """Draw one head: its card, the prompt in view, and the tab that the link names.

    Returns the tokens of the prompt.
    """
    _, capture, results = cache.run(key)
    scores = cache.scores(key)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(f"L{layer}H{head}", width="stretch")
        compare_tray.button(layer, head)
        # Asked for when it is opened: what draws code is a megabyte.
        share_place = st.popover("Share", icon=":material/share:", key="share", on_change="rerun")
    lacking = "attention_map" in capture.coords and not bool(capture["attention_map"][layer])
    if lacking:
        st.info(f"L{layer}H{head}: {viz.ABSENT}, so there is nothing to draw or to score.")
    else:
        head_card.draw(results, scores, capture, layer, head, path)
    # Drawn in any case, because a widget that is left out forgets its value.
    ids = head_detail.choose_tokens(key, capture)
    window = None
    if not lacking:
        state.take("tab", TABS)
        for tab, container in zip(TABS, st.tabs(TABS, key="tab", on_change="rerun"), strict=True):
            if not container.open:
                continue
            with container:
                if tab == "Scores":
                    head_scores.draw(scores, capture, layer, head, chosen)
                elif tab == "Examples":
                    examples.draw(key, layer, head)
                elif tab == "What if":
                    what_if.draw(key, capture, layer, head)
                elif ids is None:
                    st.info("There is no text in view.")
                elif tab == "Query-key":
                    neuron_view.draw(key, ids, layer, head)
                elif tab == "Vocabulary":
                    vocabulary_pairs.draw(key, ids, layer, head)
                else:
                    window = head_detail.draw_pattern(key, capture, ids, layer, head, name)
    if share_place.open:
        with share_place:
            share.draw(path, layer, head, window, ids)
    return ids


def _about(manifest: Mapping[str, object], results: Mapping[str, xr.Dataset]) -> None:
    with st.expander("What the analyses say", icon=":material/notes:"):
        for name, result in results.items():
            if note := _note(result):
                st.markdown(f"**{name}**: {note}")
    provenance = st.expander(
        "Provenance", icon=":material/fingerprint:", key="provenance", on_change="rerun"
    )
    if provenance.open:
        provenance.json(dict(manifest), expanded=1)


def _note(result: xr.Dataset) -> str:
    if "skipped" in result.attrs:
        return f"not run: {result.attrs['skipped']}"
    intact = f"{result.attrs['intact']}. " if "intact" in result.attrs else ""
    return f"{intact}{result.attrs.get('note', '')}".strip()


def _downloads(key: cache.RunKey, name: str) -> None:
    popover = st.popover("Download", icon=":material/download:", key="download", on_change="rerun")
    if not popover.open:
        return
    with popover:
        wide = not st.checkbox(
            "A row a head and score", key="long",
            help="Every row says units, n, evidence, convention, model and run.",
        )  # fmt: skip
        table = "heads" if wide else "scores"
        for kind in tables.FORMATS:
            st.download_button(
                kind.upper() if kind != "parquet" else "Parquet",
                # Encoded when it is asked for: a browser would fetch the file with the screen.
                partial(_table, key, wide, kind), f"{name}-{table}.{kind}",
                key=f"download_{kind}", icon=":material/download:", on_click="ignore",
                help="Scores of all heads. The camera on a figure saves it as PNG.",
            )  # fmt: skip


@st.cache_data(max_entries=8, show_spinner=False)
def _table(key: cache.RunKey, wide: bool, kind: str) -> bytes:
    """Encode the heads of a run."""
    run, _, results = cache.run(key)
    return tables.encode(kind, results, run.manifest, run.name, wide=wide)

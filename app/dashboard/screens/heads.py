"""Every head of a run by any score, and one head in full."""

from collections.abc import Mapping
from pathlib import Path

import streamlit as st
import xarray as xr

from headscope import viz
from headscope.app.dashboard import cache, state
from headscope.app.dashboard.components import (
    head_detail,
    head_filters,
    head_grid,
    run_picker,
    what_if,
)
from headscope.app.dashboard.components.pattern_window import Window
from headscope.app.dashboard.components.plain import error
from headscope.app.exports import tables
from headscope.app.report.scores import Score, collect, heads_table
from headscope.kernels.errors import HeadscopeError

TITLE = "Heads"
# One column on narrow screens, and room for grids of many heads.
NARROW = """<style>
[data-testid=stMainBlockContainer] { padding: 3rem 2rem; }
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
    if folder is None or not (folder / "manifest.json").exists():
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
        run, capture, results = cache.run(key)
    except HeadscopeError as refusal:
        error(refusal)
        return
    scores = collect(results)
    if not scores:
        st.info(f"{path.name} has no scores of heads yet: `headscope analyze {path}` makes them.")
        return
    shape = next(iter(scores.values())).array.shape
    with st.sidebar:
        chosen = _controls(scores, shape)
        among = head_filters.choose(results, scores)
        _about(run.manifest, results)
    complaints = st.container()
    layer, head = int(st.session_state["layer"]), int(st.session_state["head"])
    name = f"{str(run.manifest['model']).replace('/', '-')}-{path.name}"
    st.html(NARROW)
    with st.container(key="heads_columns"):
        left, right = st.columns([4, 5], gap="medium")
    with left:
        st.subheader(f"Heads by: {chosen.title}")
        table = heads_table(results)
        thumbnails = head_grid.draw(scores, chosen, table, name, among)
        _downloads(key, name)
        head_detail.draw_scores(scores, capture, layer, head)
    with right:
        st.subheader(f"L{layer}H{head}")
        ids, window = head_detail.draw_pattern(key, capture, layer, head, f"{name}-L{layer}H{head}")
        what_if.draw(key, capture, layer, head)
        _share(path, layer, head, window)
    if thumbnails is not None and ids is not None:
        with thumbnails:
            head_grid.draw_thumbnails(key, ids, among)
    with complaints:
        state.show_warnings()


def _controls(scores: Mapping[str, Score], shape: tuple[int, ...]) -> Score:
    layers, heads = shape
    state.take("by", list(scores))
    state.take("view", head_grid.VIEWS)
    by = st.selectbox(
        "Score (analysis.variable)", list(scores), key="by", persist_state="session",
        help="Colours the heads. The definition stands below the grid.",
    )  # fmt: skip
    state.take("layer", range(layers), viz.absent(scores[by].array).index(False))
    state.take("head", range(heads))
    st.selectbox("Layer", range(layers), key="layer", persist_state="session")
    st.selectbox("Head", range(heads), key="head", persist_state="session")
    st.caption("Arrow keys move between heads; a click in the grid picks one.")
    columns = [*st.columns(2), *st.columns(2)]
    for column, (key, by_step) in zip(columns, state.MOVES.items(), strict=True):
        column.button(
            key, key=f"go_{key}", shortcut=key, width="stretch",
            on_click=state.select_head, args=state.neighbour(by_step, (layers, heads)),
        )  # fmt: skip
    return scores[by]


def _about(manifest: Mapping[str, object], results: Mapping[str, xr.Dataset]) -> None:
    with st.expander("What the analyses say", icon=":material/notes:"):
        for name, result in results.items():
            if note := _note(result):
                st.markdown(f"**{name}**: {note}")
    with st.expander("Provenance", icon=":material/fingerprint:"):
        st.json(dict(manifest), expanded=1)


def _note(result: xr.Dataset) -> str:
    if "skipped" in result.attrs:
        return f"not run: {result.attrs['skipped']}"
    intact = f"{result.attrs['intact']}. " if "intact" in result.attrs else ""
    return f"{intact}{result.attrs.get('note', '')}".strip()


def _downloads(key: cache.RunKey, name: str) -> None:
    wide = not st.checkbox(
        "A row a head and score", key="long",
        help="Every row says units, n, evidence, convention, model and run.",
    )  # fmt: skip
    table = "heads" if wide else "scores"
    columns = st.columns(len(tables.FORMATS))
    for column, (kind, data) in zip(columns, _tables(key, wide).items(), strict=True):
        column.download_button(
            kind.upper() if kind != "parquet" else "Parquet", data, f"{name}-{table}.{kind}",
            key=f"download_{kind}", icon=":material/download:", on_click="ignore",
            help="Scores of all heads. The camera on a figure saves it as PNG.",
        )  # fmt: skip


@st.cache_data(max_entries=4, show_spinner=False)
def _tables(key: cache.RunKey, wide: bool) -> dict[str, bytes]:
    """Encode the heads of a run in every format."""
    run, _, results = cache.run(key)
    return {
        kind: tables.encode(kind, results, run.manifest, run.name, wide=wide)
        for kind in tables.FORMATS
    }


def _share(path: Path, layer: int, head: int, window: Window | None) -> None:
    st.markdown("**This view again**")
    st.code(state.link(), language=None, wrap_lines=True)
    text, target = (st.session_state.get(name) or "" for name in ("text", "target"))
    own = f"[Pair({text!r}, {target!r})]" if target.strip() else repr([text])
    prompts = own if text.strip() else f"[opened.prompts()[{st.session_state['prompt']}]]"
    lines = [
        "from headscope.probes import Pair, capture, pattern, run",
        "from headscope.app.pipeline import open_model",
        "",
        f"opened = run.open({str(path)!r})",
    ]
    if window is None:
        lines += [
            f"cap = capture(open_model(opened), {prompts}, stats=('lse',), keep=('q', 'k'))",
            f"pattern(cap, layer={layer}, head={head})",
        ]
    else:
        queries, keys = (f"slice({side.start}, {side.stop})" for side in window)
        lines += [
            "model = open_model(opened)",
            f"cap = capture(model, {prompts}, stats=('entropy',))",
            f"pattern(cap, {layer}, {head}, queries={queries}, keys={keys}, model=model)",
        ]
    st.code("\n".join(lines), language="python", wrap_lines=True)

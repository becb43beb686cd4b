"""A score of every head over the training of a model, and when heads emerge."""

from pathlib import Path

import streamlit as st
import xarray as xr

from headscope import viz
from headscope.analyses.series import emergence, kept
from headscope.app.dashboard import cache, state
from headscope.app.dashboard.components.plain import error
from headscope.app.report.page import is_doubtful
from headscope.app.report.timeline import drawn, scores
from headscope.kernels.errors import HeadscopeError

TITLE = "Timelines"


def opens(folder: Path | None) -> bool:
    """Tell whether the dashboard was started on a timeline."""
    return folder is not None and kept.holds(folder)


def draw() -> None:
    """Draw the screen for the timeline that the link names, or the first beside the run."""
    folder = cache.folder()
    paths = {} if folder is None else _beside(folder)
    st.title("Timelines")
    if not paths:
        st.info(
            "There is no timeline beside this run. `headscope timeline headscope/induction@* "
            "--analysis head_types --out runs/emergence` makes one of the shipped checkpoints."
        )
        return
    names = list(paths)
    begin = folder.name if folder is not None and folder.name in names else names[0]
    state.take("timeline", names, begin)
    chosen = st.selectbox("Timeline", names, key="timeline", persist_state="session")
    path = paths[chosen]
    try:
        whole = _read(str(path), (path / kept.WHOLE).stat().st_mtime_ns)
    except (HeadscopeError, OSError) as refusal:
        error(refusal)
        return
    _show(whole, chosen)


def _beside(run: Path) -> dict[str, Path]:
    """List the finished timelines in the folder of a run, by name."""
    folders = (file.parent for file in sorted(run.parent.glob(f"*/{kept.MANIFEST}")))
    return {folder.name: folder for folder in folders if kept.holds(folder)}


@st.cache_resource(max_entries=4, show_spinner="Reading the timeline …")
def _read(path: str, version: int) -> xr.Dataset:
    return kept.load(path)


def _show(whole: xr.Dataset, chosen: str) -> None:
    note = str(whole.attrs["note"])
    (st.warning if is_doubtful(whole) else st.caption)(f"{whole.attrs['model']}: {note}")
    shown = drawn(whole)
    state.take("score", shown)
    # Not by their titles: the link would carry these.
    score = st.selectbox("Score", shown, key="score", persist_state="session")
    name = f"{chosen}-{score}"
    st.plotly_chart(
        viz.draw(whole, score),
        key="lines",
        config={"displaylogo": False, "toImageButtonOptions": {"filename": name, "scale": 2}},
        alt="The chosen score over the training of the model, a line for each head.",
    )
    attrs = whole[score].attrs
    st.caption(". ".join(str(attrs[key]) for key in ("convention", "source") if attrs.get(key)))
    if score in scores(whole):
        order = emergence(whole, score).attrs
        st.subheader("Emergence, in order")
        if order["order"]:
            st.table(order["order"])
        st.caption(order["convention"])
    table = whole[[score]].to_dataframe().reset_index()
    st.download_button(
        "CSV", table.to_csv(index=False), f"{name}.csv", "text/csv",
        key="download_timeline", icon=":material/download:", on_click="ignore",
    )  # fmt: skip
    with st.expander("By checkpoint", icon=":material/fingerprint:"):
        st.json(dict(whole.attrs["by_checkpoint"]), expanded=1)

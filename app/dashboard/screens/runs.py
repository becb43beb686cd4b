"""The runs of the folder that the dashboard was started on, and new ones."""

from pathlib import Path

import streamlit as st

from headscope.app.dashboard import cache, screens, state
from headscope.app.dashboard.components import new_run, run_list, run_picker
from headscope.app.dashboard.components.plain import plain

TITLE = "Runs"


def opens(folder: Path | None) -> bool:
    """Return whether the dashboard was started on a folder of runs."""
    return cache.is_runs_folder(folder)


def draw() -> None:
    """Draw the list, the run that the link names, and the form of a new one."""
    st.title(TITLE)
    folder = cache.folder()
    if folder is None:
        st.info("The dashboard was started without a folder: `headscope app RUN`.")
        return
    runs = {name: path for name, path in cache.neighbours(folder).items() if _is_run(path)}
    if runs:
        run_list.draw(runs)
        _chosen(run_picker.choose(folder if _is_run(folder) else next(iter(runs.values()))))
    else:
        st.info("There is no run here yet. The form below captures one.")
    state.show_warnings()
    new_run.draw(folder.parent)


def _is_run(path: Path) -> bool:
    return (path / cache.MANIFEST).exists()


def _chosen(path: Path) -> None:
    row = run_list.card(cache.run_key(path))
    with st.container(horizontal=True):
        screens.link("heads", "Browse its heads", {"run": path.name}, ":material/grid_on:")
        screens.link("analyses", "Analyse it", {"run": path.name}, ":material/science:")
    refused = row.get("refused")
    if not row.get("analyses"):
        st.caption("No analyses yet: Heads shows its attention and the statistics of the capture.")
    if refused:
        with st.expander(f"{len(refused)} analyses were refused, and what they need"):
            for name, why in refused.items():
                st.markdown(f"**{name}** · {plain(why)}")
    st.caption(f"Folder: {plain(path)}")

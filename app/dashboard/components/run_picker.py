"""Which run a screen is about: the one that the link names, or the one that was opened."""

from pathlib import Path
from typing import Any

import streamlit as st

from headscope.app.dashboard import cache, state


def opened(use: str = "") -> Path | None:
    """Return the run that the dashboard was started on; None, said on the page, without one.

    ``use`` ends the sentence, such as ``" to analyse"``.
    """
    folder = cache.folder()
    if folder is not None and (folder / cache.MANIFEST).exists():
        return folder
    st.info(f"There is no run here{use}. The screen Runs captures one.")
    return None


def choose(folder: Path, place: Any = st) -> Path:
    """Let the user choose among the runs beside the one that was opened; all screens share it."""
    runs = cache.neighbours(folder)
    names = list(runs)
    state.take("run", names, folder.name)
    return runs[place.selectbox("Run", names, key="run", persist_state="session")]

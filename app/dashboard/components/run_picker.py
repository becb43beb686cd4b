"""Which run a screen is about: the one that the link names, or the one that was opened."""

from pathlib import Path
from typing import Any

import streamlit as st

from headscope.app.dashboard import cache, state


def choose(folder: Path, place: Any = st) -> Path:
    """Let the user choose among the runs beside the one that was opened; all screens share it."""
    runs = cache.neighbours(folder)
    names = list(runs)
    state.take("run", names, folder.name)
    if st.session_state["run"] not in names:  # it was removed meanwhile
        st.session_state["run"] = folder.name
    return runs[place.selectbox("Run", names, key="run", persist_state="session")]

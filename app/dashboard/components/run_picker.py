"""Which run a screen is about: the one that the link names, or the one that was opened."""

from pathlib import Path
from typing import Any

import streamlit as st

from headscope.app.dashboard import cache, state

LAST = "last_run"


def choose(folder: Path, place: Any = st) -> Path:
    """Let the user choose among the runs beside the one that was opened; all screens share it."""
    runs = cache.neighbours(folder)
    names = list(runs)
    state.warn_bad_param("run", names)
    if st.session_state.get("run") not in names:  # it was removed meanwhile
        st.session_state.pop("run", None)
    # Not a state that persists, which would win over a link from one screen to another.
    last = st.session_state.get(LAST, folder.name)
    start = names.index(last if last in names else folder.name)
    chosen = place.selectbox("Run", names, index=start, key="run", bind="query-params")
    st.session_state[LAST] = chosen
    return runs[chosen]

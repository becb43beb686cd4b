"""Which run a screen is about: the one that the link names, or the one that was opened."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import streamlit as st
import xarray as xr

from headscope.app.dashboard import cache, state
from headscope.app.dashboard.components.plain import error
from headscope.kernels.errors import HeadscopeError


class Read(NamedTuple):
    """A run that was read; ``name`` begins the names of files that are downloaded of it."""

    key: cache.RunKey
    capture: xr.Dataset
    results: Mapping[str, xr.Dataset]
    name: str


def opened(use: str = "") -> Path | None:
    """Return the run that the dashboard was started on; None, with a note on the page, without one.

    ``use`` ends the sentence, such as ``" to analyse"``.
    """
    folder = cache.folder()
    if folder is not None and (folder / cache.MANIFEST).exists():
        return folder
    st.info(f"There is no run here{use}. The screen Runs captures one.")
    return None


def choose(folder: Path, container: Any = st) -> Path:
    """Let the user choose among the runs beside the one that was opened; all screens share it."""
    runs = cache.neighbours(folder)
    names = list(runs)
    state.take("run", names, folder.name, decides=True)
    return runs[container.selectbox("Run", names, key="run", persist_state="session")]


def read() -> Read | None:
    """Let the user choose a run, and read it; None, with an error on the page, where that fails."""
    folder = opened()
    if folder is None:
        return None
    path = choose(folder)
    key = cache.run_key(path)
    try:
        run, capture, results = cache.run(key)
    except HeadscopeError as refusal:
        error(refusal)
        return None
    return Read(
        key, capture, results, f"{str(run.manifest['model']).replace('/', '-')}-{path.name}"
    )

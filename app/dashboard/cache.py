"""What the dashboard reads from disk and computes, each once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import streamlit as st

from headscope.kernels.errors import ResourceLimit
from headscope.probes.models.pair import Pair
from headscope.viz.component.thumbnails import SIDE

if TYPE_CHECKING:
    import xarray as xr

    from headscope.probes.attention.layer_attention import Layer
    from headscope.probes.models.model import Model
    from headscope.probes.storage.run_folder import Run

Tokens = tuple[int, ...] | Pair | int
"""What one prompt is: token ids, those of a source and of a target, or an image of the run."""

# Set by tests, which have no command line of their own.
VARIABLE = "HEADSCOPE_RUN"
# Longest text whose whole map is drawn; of a longer one, an overview and a window.
WHOLE = 512
# Longest text whose overview is a matter of seconds on a processor.
LONGEST = 32768
# Longest text whose maps are pooled for all heads.
THUMBNAILS = 4096


class RunKey(NamedTuple):
    """A run, and when it or one of its results was last written: what is cached by."""

    path: str
    version: str


def folder() -> Path | None:
    """Return the run folder that the dashboard was started with."""
    path = sys.argv[1] if len(sys.argv) > 1 else os.environ.get(VARIABLE, "")
    return Path(path) if path else None


def neighbours(path: Path) -> dict[str, Path]:
    """List the runs in the same folder, by name; the given one is always among them."""
    files = sorted(path.parent.glob("*/manifest.json"))
    return {path.name: path, **{file.parent.name: file.parent for file in files}}


def run_key(path: Path) -> RunKey:
    """Return the key of a run."""
    files = [path / "manifest.json", *sorted((path / "results").glob("[!.]*.safetensors"))]
    times = (f"{file.name}:{file.stat().st_mtime_ns}" for file in files if file.exists())
    return RunKey(str(path), "|".join(times))


@st.cache_resource(max_entries=4, show_spinner="Reading the run …")
def run(key: RunKey) -> tuple[Run, xr.Dataset, dict[str, xr.Dataset]]:
    """Read a run, its capture and its results, all of them to be read only."""
    from headscope.probes.storage import run_folder

    opened = run_folder.open(key.path)
    return opened, opened.capture, opened.results()


@st.cache_resource(max_entries=1, show_spinner="Loading the model …")
def model(key: RunKey) -> Model:
    """Load the model of a run."""
    from headscope.app.pipeline import open_model

    return open_model(run(key)[0])


@st.cache_data(max_entries=64, show_spinner="Computing the pattern …")
def weights(key: RunKey, ids: Tokens, layer: int, head: int) -> xr.DataArray:
    """Compute the attention weights of one head on some tokens, dims query and key."""
    from headscope.probes import pattern

    return pattern(_captured(key, ids), layer, head)


@st.cache_resource(max_entries=8, show_spinner="Capturing the prompt …")
def _captured(key: RunKey, ids: Tokens) -> xr.Dataset:
    """Capture queries and keys of all heads once, so that moving between heads is quick."""
    from headscope.probes import capture

    given: Any = ids if not isinstance(ids, int) else run(key)[0].prompts()[ids]
    return capture(model(key), [given], stats=("lse",), keep=("q", "k"))


@st.cache_resource(max_entries=8, show_spinner="Pooling the patterns of all heads …")
def pooled_heads(key: RunKey, ids: Tokens) -> xr.DataArray:
    """Pool the patterns of all heads on some tokens, dims layer, head, query_tile, key_tile."""
    from headscope.probes import capture

    given: Any = ids if not isinstance(ids, int) else run(key)[0].prompts()[ids]
    sides: Any = (ids.source, ids.target) if isinstance(ids, Pair) else (ids,)
    length = int(run(key)[1]["length"][ids]) if isinstance(ids, int) else max(map(len, sides))
    check_length(length, THUMBNAILS)
    found = capture(model(key), [given], stats=("pooled_max",), tile=-(-length // SIDE))
    pooled = found["pooled_max"].isel(prompt=0)
    pooled.attrs["long_name"] = "Attention of every head on the prompt in view"
    return pooled


@st.cache_resource(max_entries=2, show_spinner="Running the model …")
def layer(key: RunKey, ids: tuple[int, ...], number: int) -> Layer:
    """Run the model up to a layer once, so that moving the window is quick."""
    from headscope.probes.attention.layer_attention import run_until_layer

    return run_until_layer(model(key), ids, number)


@st.cache_data(max_entries=64, show_spinner="Pooling the map …")
def pooled(
    key: RunKey, ids: tuple[int, ...], number: int, head: int, tile: int
) -> dict[str, npt.NDArray[np.float32]]:
    """Pool the whole map of one head into tiles."""
    return layer(key, ids, number).pooled(head, tile)


@st.cache_data(max_entries=256, show_spinner=False)
def window(
    key: RunKey,
    ids: tuple[int, ...],
    number: int,
    head: int,
    queries: tuple[int, int],
    keys: tuple[int, int],
) -> npt.NDArray[np.float32]:
    """Compute a window of one head's weights, exactly."""
    return layer(key, ids, number).weights(head, np.arange(*queries), np.arange(*keys))


def read_text(key: RunKey, text: str | Pair) -> Tokens:
    """Turn the user's own text, or pair of texts, into token ids."""
    from headscope.probes.prompts.reading import read as read_prompts

    prompts = read_prompts(model(key), text)
    if not prompts.sources:
        check_length(len(prompts.ids[0]))
        return prompts.ids[0]
    check_length(max(prompts.longest), WHOLE)
    return Pair(prompts.sources[0], prompts.ids[0])


def check_length(length: int, limit: int = LONGEST) -> None:
    """Refuse a text whose map takes too long."""
    if length > limit:
        raise ResourceLimit(
            f"text: {length} tokens, and such maps are drawn up to {limit}; shorten it"
        )

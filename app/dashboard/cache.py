"""What the dashboard reads from disk and computes, each once."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import streamlit as st

from headscope.app.dashboard import capture_scores
from headscope.app.report.scores import Score, collect, heads_table
from headscope.kernels.errors import ResourceLimit
from headscope.probes.models.pair import Pair
from headscope.viz.component.long_view import SIDE as BLOCKS
from headscope.viz.component.thumbnails import SIDE

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from headscope.analyses._measurements.token_pairs import Pairs
    from headscope.probes.attention.layer_attention import Layer
    from headscope.probes.models.model import Model
    from headscope.probes.storage.run_folder import Run

Tokens = tuple[int, ...] | Pair | int
"""What one prompt is: token ids, those of a source and of a target, or an image of the run."""

MANIFEST = "manifest.json"
# Set by tests, which have no command line of their own.
VARIABLE = "HEADSCOPE_RUN"
# Longest text whose whole map is drawn; of a longer one, an overview and a window.
WHOLE = 512
# Longest text whose overview is a matter of seconds on a processor.
LONGEST = 32768
# Longest text whose maps are pooled for all heads.
THUMBNAILS = 4096
# Passes of sessions hook the modules of the model that they share: one at a time.
_passes = RLock()


class RunKey(NamedTuple):
    """A run, and when it or one of its results was last written: what is cached by."""

    path: str
    version: str


def folder() -> Path | None:
    """Return the run that the dashboard was started with, or the latest in a folder of runs."""
    path = _started()
    runs = sorted(path.glob(f"*/{MANIFEST}"), key=lambda file: file.stat().st_mtime) if path else []
    return runs[-1].parent if runs else path


def _started() -> Path | None:
    path = sys.argv[1] if len(sys.argv) > 1 else os.environ.get(VARIABLE, "")
    return Path(path) if path else None


def is_runs_folder(path: Path | None) -> bool:
    """Return whether the dashboard was started with a folder of runs, not with one of them."""
    return path is not None and path != _started()


def neighbours(path: Path) -> dict[str, Path]:
    """List the runs in the same folder, by name; a given run is always among them."""
    files = sorted(path.parent.glob(f"*/{MANIFEST}"))
    return {path.name: path, **{file.parent.name: file.parent for file in files}}


def run_key(path: Path) -> RunKey:
    """Return the key of a run."""
    files = [path / MANIFEST, *sorted((path / "results").glob("[!.]*.safetensors"))]
    times = (f"{file.name}:{file.stat().st_mtime_ns}" for file in files if file.exists())
    return RunKey(str(path), "|".join(times))


@st.cache_resource(max_entries=4, show_spinner="Reading the run …")
def run(key: RunKey) -> tuple[Run, xr.Dataset, dict[str, xr.Dataset]]:
    """Read a run, its capture and its results, all of them to be read only."""
    from headscope.probes.storage import run_folder

    opened = run_folder.open(key.path)
    capture, results = opened.capture, opened.results()
    if not collect(results):  # so that a run without scores can be opened, too
        results = {**results, capture_scores.NAME: capture_scores.summarize(capture)}
    return opened, capture, results


@st.cache_resource(max_entries=4, show_spinner=False)
def scores(key: RunKey) -> dict[str, Score]:
    """List the scores of heads of a run."""
    return collect(run(key)[2])


@st.cache_resource(max_entries=4, show_spinner=False)
def table(key: RunKey) -> pd.DataFrame:
    """Return the table of the heads of a run, to be read only."""
    return heads_table(run(key)[2])


def model(key: RunKey) -> Model:
    """Load the model of a run, which all sessions share."""
    from headscope.app.pipeline import open_model

    return open_model(run(key)[0], load=lambda *source, **options: _models(*source, **options)[0])


def job_loader(report: Callable[[str, float, float], None]) -> Callable[..., Model]:
    """Return what loads a model for the job that runs, as `load_model` does, and reports it.

    Its modules are the job's own, its weights are shared: a job hooks and edits modules for
    minutes, and no pass of a session may run through that.
    """

    def load(*source: Any, **loading: Any) -> Model:
        report("loading the model", 0, 1)
        job_model = _models(*source, **loading)[1]
        report("loading the model", 1, 1)
        return job_model

    return load


def _models(
    source: str, attention: str = "self", tokenizer: str | None = None, bos: bool | None = None
) -> tuple[Model, Model]:
    from headscope.app.pipeline import absolute

    return _loaded(absolute(source), attention, tokenizer, bos)


@st.cache_resource(max_entries=1, show_spinner="Loading the model …")
def _loaded(
    source: str, attention: str, tokenizer: str | None, bos: bool | None
) -> tuple[Model, Model]:
    """Load a model for the sessions, and for jobs."""
    from headscope.probes import load_model

    original = load_model(source, attention=attention, tokenizer=tokenizer, bos=bos)
    shared = (*original.module.parameters(), *original.module.buffers())
    module = copy.deepcopy(original.module, {id(tensor): tensor for tensor in shared})
    return original, replace(original, module=module)


@st.cache_data(max_entries=64, show_spinner="Computing the pattern …")
def weights(key: RunKey, ids: Tokens, layer: int, head: int) -> xr.DataArray:
    """Compute the attention weights of one head on some tokens, dims query and key."""
    from headscope.probes import pattern

    return pattern(_captured(key, ids), layer, head)


@st.cache_data(max_entries=64, show_spinner=False)
def terms(key: RunKey, ids: Tokens, layer: int, head: int, query: int, other: int) -> xr.Dataset:
    """Split the logit of one query and one key into its channels."""
    from headscope.probes.capturing.logit_terms import logit_terms

    return logit_terms(_captured(key, ids), layer, head, query, other)


@st.cache_resource(max_entries=32, show_spinner="Reading the weights of the head …")
def token_pairs(
    key: RunKey, tokens: tuple[int, ...], layer: int, head: int, k: int
) -> dict[str, Pairs]:
    """Find what some tokens promote, and which of them they look for, at one head."""
    from headscope.analyses._measurements import token_pairs as pairs

    run_model = model(key)
    with _passes:
        vectors = pairs.vectors(run_model, layer, head, tokens)
        promoted = pairs.promoted(run_model, layer, head, vectors, tokens, k)
    attended_keys = pairs.attended_keys(vectors, tokens, vectors, k)
    return {
        "ov": promoted,
        "qk": replace(attended_keys, others=np.asarray(tokens)[attended_keys.others]),
    }


@st.cache_resource(max_entries=8, show_spinner="Capturing the prompt …")
def _captured(key: RunKey, ids: Tokens) -> xr.Dataset:
    """Capture queries and keys of all heads once, so that moving between heads is quick."""
    from headscope.probes import capture

    prompt: Any = ids if not isinstance(ids, int) else run(key)[0].prompts()[ids]
    with _passes:
        return capture(model(key), [prompt], stats=("lse",), keep=("q", "k"))


@st.cache_resource(max_entries=8, show_spinner="Pooling the patterns of all heads …")
def pooled_heads(key: RunKey, ids: Tokens) -> xr.DataArray:
    """Pool the patterns of all heads on some tokens, dims layer, head, query_tile, key_tile."""
    from headscope.probes import capture

    prompt: Any = ids if not isinstance(ids, int) else run(key)[0].prompts()[ids]
    sides: Any = (ids.source, ids.target) if isinstance(ids, Pair) else (ids,)
    length = int(run(key)[1]["length"][ids]) if isinstance(ids, int) else max(map(len, sides))
    check_length(length, THUMBNAILS)
    with _passes:
        captured = capture(model(key), [prompt], stats=("pooled_max",), tile=-(-length // SIDE))
    pooled = captured["pooled_max"].isel(prompt=0)
    pooled.attrs["long_name"] = "Attention of every head on the prompt in view"
    return pooled


@st.cache_resource(max_entries=2, show_spinner="Running the model …")
def layer(key: RunKey, ids: tuple[int, ...], number: int) -> Layer:
    """Run the model up to a layer once, so that moving the window is quick."""
    from headscope.probes.attention.layer_attention import run_until_layer

    with _passes:
        return run_until_layer(model(key), ids, number)


@st.cache_resource(max_entries=16, show_spinner="Pooling the map …")
def overview(key: RunKey, ids: tuple[int, ...], number: int, head: int) -> xr.Dataset:
    """Pool the whole map of one head into blocks, with what each token receives and its entropy."""
    import xarray as xr

    from headscope.kernels import statistics

    tile = -(-len(ids) // BLOCKS)
    arrays = layer(key, ids, number).overview(head, tile)
    return xr.Dataset(
        {name: (statistics.load(name).dims, values) for name, values in arrays.items()},
        coords={"token": ("query", model(key).to_str_tokens(ids)), "layer": number, "head": head},
        attrs={"tile": tile},
    )


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
    """Convert the user's own text, or pair of texts, into token ids."""
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

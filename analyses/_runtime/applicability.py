"""Whether an analysis suits the model of a capture, from what it declares, without running it."""

from __future__ import annotations

from collections.abc import Iterator

import xarray as xr

from headscope import analyses
from headscope.analyses._runtime.results import attending


def refusal(name: str, capture: xr.Dataset) -> str:
    """Return why an analysis does not suit the model of a capture, and what does; "" where it does.

    What depends on the prompts, the tokenizer or the side of an encoder–decoder model, it can only
    say when it runs.

    >>> from headscope.probes import capture
    >>> data = capture("headscope/bundled", [[0, 5, 6, 7]], stats=())
    >>> refusal("importance", data), refusal("importance", data.assign_coords(causal=("layer", [0] * 4)))
    ('', 'model: importance needs causal order, and this model reads both ways; see sinks')
    """  # noqa: E501
    module = analyses.load(name)
    supports: set[str] = getattr(module, "SUPPORTS", set())
    for kind, why in _kinds(name, capture):
        if kind not in supports:
            return why
    needs_task = hasattr(module, "TASK")
    if needs_task and capture.attrs.get("attention", "self") != "self":
        return f"task: {name} asks for the next word of single texts; see sinks"
    if needs_task and "pixels" in capture.coords:
        return f"task: {name} asks in words, and this model reads images; see sinks"
    return ""


def _kinds(name: str, capture: xr.Dataset) -> Iterator[tuple[str, str]]:
    """List what is special about the model, and what an analysis says that cannot measure it."""
    attention = capture.attrs.get("attention", "self")
    attended = attending(capture)
    if "pixels" in capture.coords:
        yield "vision", f"model: {name} reads tokens, and this model images; see sinks"
    elif attention == "cross":
        yield (
            "cross",
            f"capture: {name} follows attention through one text, and this is the cross-attention "
            "of an encoder–decoder model; see sinks",
        )
    elif not capture["causal"].values[attended].all():
        yield (
            "encoder",
            f"model: {name} needs causal order, and this model reads both ways; see sinks",
        )
    if capture.attrs.get("weights") == "sigmoid":
        yield (
            "sigmoid",
            f"weights: {name} takes the weights of a row for shares of one whole, and those of "
            "sigmoid attention do not sum to one; see sinks",
        )
    if not attended.all():
        yield (
            "hybrid",
            f"attention_map: {name} follows attention through every layer, and some layers of this "
            "model have none; see sinks",
        )

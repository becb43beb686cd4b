"""Labels: the tokens of every prompt and the learned sinks, as coordinates of a capture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.prompt_batch import Prompts


def coords(model: Model, prompts: Prompts) -> dict[str, Any]:
    """Name the tokens along queries, and along a source where there is one."""
    token, token_id, length = _words(model, prompts.ids, prompts.names)
    found: dict[str, Any] = {
        "token": (("prompt", "query"), token),
        "token_id": (("prompt", "query"), token_id),
        "length": ("prompt", length),
    }
    if prompts.pixels is not None:
        # A run is looked at again, and its images may have moved away.
        found["pixels"] = (("prompt", "colour", "height", "width"), prompts.pixels.numpy())
    if prompts.sources:
        token, token_id, length = _words(model, prompts.sources, ())
        name = "key" if prompts.crossed else "source"
        if prompts.crossed:
            found["key_token"] = (("prompt", "key"), token)
        found[f"{name}_token_id"] = (("prompt", name), token_id)
        found[f"{name}_length"] = ("prompt", length)
    return found


def _words(
    model: Model, ids: Sequence[Sequence[int]], names: Sequence[str]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Name the tokens of prompts, side by side: words, ids and lengths."""
    longest = max(map(len, ids))
    token_id = np.full((len(ids), longest), -1, dtype=np.int64)
    token = np.full((len(ids), longest), "", dtype=object)
    for row, one in enumerate(ids):
        token_id[row, : len(one)] = one
        token[row, : len(one)] = names or model.words(one)
    return token.astype(str), token_id, np.array([len(one) for one in ids])


def sink_logits(
    model: Model, sinks: Mapping[int, npt.NDArray[np.float32]]
) -> tuple[tuple[str, str], npt.NDArray[np.float32]]:
    """Lay out the learned sinks by layer and head, NaN where a layer has none."""
    logits = np.full((model.layers, model.heads), np.nan, dtype=np.float32)
    for layer, values in sinks.items():
        logits[layer] = values
    return ("layer", "head"), logits

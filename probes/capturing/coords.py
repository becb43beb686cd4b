"""Coordinates of a capture: tokens and lengths of the prompts, and what holds for whole layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headscope.kernels.errors import NotApplicable
from headscope.probes.attention.interface import AttentionCall

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.prompt_batch import Prompts

Array = npt.NDArray[np.float32]


def token_coords(model: Model, prompts: Prompts) -> dict[str, Any]:
    """Name the tokens along queries, and along a source where there is one."""
    token, token_id, length = _tokens(model, prompts.ids, prompts.names)
    coords: dict[str, Any] = {
        "token": (("prompt", "query"), token),
        "token_id": (("prompt", "query"), token_id),
        "length": ("prompt", length),
    }
    if prompts.pixels is not None:
        # A run is shown again later, and its images may have moved away.
        coords["pixels"] = (("prompt", "colour", "height", "width"), prompts.pixels.numpy())
    if prompts.sources:
        token, token_id, length = _tokens(model, prompts.sources, ())
        name = "key" if prompts.crossed else "source"
        if prompts.crossed:
            coords["key_token"] = (("prompt", "key"), token)
        coords[f"{name}_token_id"] = (("prompt", name), token_id)
        coords[f"{name}_length"] = ("prompt", length)
    return coords


def _tokens(
    model: Model, prompts: Sequence[Sequence[int]], names: Sequence[str]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Tabulate the tokens of prompts: words, ids and lengths."""
    longest = max(map(len, prompts))
    token_id = np.full((len(prompts), longest), -1, dtype=np.int64)
    token = np.full((len(prompts), longest), "", dtype=object)
    for row, ids in enumerate(prompts):
        token_id[row, : len(ids)] = ids
        token[row, : len(ids)] = names or model.words(ids)
    return token.astype(str), token_id, np.array([len(ids) for ids in prompts])


class LayerCoords:
    """What holds for whole layers, collected from their attention calls.

    Parameters
    ----------
    model
        The model.
    keeps_keys
        Whether q and k are kept, so that a position bias must be kept beside them.
    """

    def __init__(self, model: Model, keeps_keys: bool) -> None:
        self.model, self.keeps_keys = model, keeps_keys
        names = ("causal", "logit_scale", "window", "softcap")
        self.numbers = {name: np.full(model.layers, np.nan) for name in names}
        self.sinks: dict[int, Array] = {}
        self.biases: dict[int, Array] = {}
        self.slopes: dict[int, Array] = {}

    def note(self, call: AttentionCall) -> None:
        """Keep what one attention call says of its layer."""
        self.numbers["logit_scale"][call.layer] = call.scale
        self.numbers["causal"][call.layer] = call.causal
        if call.sinks is not None:
            self.sinks[call.layer] = call.sinks.cpu().numpy()
        if call.bias is not None and self.keeps_keys:
            bias = bias_by_distance(call.bias)
            if bias.shape[1] > self.biases.get(call.layer, bias[:, :0]).shape[1]:
                self.biases[call.layer] = bias
        if call.slopes is not None and (call.key.shape[2] > 1 or call.layer not in self.slopes):
            self.slopes[call.layer] = call.slopes.cpu().numpy()
        for name, value in (("window", call.window), ("softcap", call.softcap)):
            if value is not None:
                self.numbers[name][call.layer] = value

    def coords(self) -> dict[str, Any]:
        """Lay out what was noted along layers, heads and distances."""
        model = self.model
        coords: dict[str, Any] = {name: ("layer", values) for name, values in self.numbers.items()}
        coords["causal"] = ("layer", self.numbers["causal"] > 0)
        if model.geometry.without:
            attending = np.isin(np.arange(model.layers), model.geometry.attending)
            coords["attention_map"] = ("layer", attending)
        if self.sinks:
            coords["sink_logit"] = self._by_head(self.sinks, np.nan)
        if self.biases:
            reach = max(bias.shape[1] for bias in self.biases.values()) // 2
            table = np.full((model.layers, model.heads, 2 * reach + 1), np.nan, dtype=np.float32)
            for layer, values in self.biases.items():
                table[layer] = values
            coords["position_bias"] = (("layer", "head", "relative"), table)
            coords["relative"] = np.arange(-reach, reach + 1)
        if self.slopes:
            coords["alibi_slope"] = self._by_head(self.slopes, 0.0)
        return coords

    def _by_head(self, rows: Mapping[int, Array], missing: float) -> Any:
        """Lay one row a layer out by layer and head."""
        table = np.full((self.model.layers, self.model.heads), missing, dtype=np.float32)
        for layer, values in rows.items():
            table[layer] = values
        return ("layer", "head"), table


def bias_by_distance(bias: Tensor) -> Array:
    """Read a relative position bias as one row a head over key - query, -(n - 1) … n - 1."""
    length = bias.shape[-1]
    at = torch.arange(length, device=bias.device)
    row = torch.cat((bias[0, :, 1:, 0].flip(1), bias[0, :, 0]), dim=1)
    square = bias.shape[0] == 1 and bias.shape[2] == length
    if not square or not torch.equal(row[:, at - at[:, None] + length - 1], bias[0]):
        raise NotApplicable(
            "keep: the position bias of this model is no function of the distance, so q and k do "
            "not tell its weights; capture stats=('pattern',) instead"
        )
    return row.cpu().numpy()

"""Build the Dataset of a capture: variables with their attrs, coordinates, and the provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor

from headscope.kernels import statistics
from headscope.kernels.errors import NotApplicable
from headscope.probes.attention.interface import AttentionCall
from headscope.probes.capturing.array_writer import BINNED, ArrayWriter

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.prompt_batch import Prompts

Array = npt.NDArray[np.float32]

KEPT = {
    "q": "Queries, after their rotation",
    "k": "Keys, after their rotation",
    "v": "Values",
    "z": "Output of every head, after the edits",
    "resid": "Residual stream before each block and after the last",
}
WEIGHTS = {
    "softmax": "weights are the softmax over the keys a query can see",
    "sigmoid": "weights are the sigmoid of each logit on its own, so rows do not sum to one",
}
CONVENTION = (
    "position 0 is the first token (<bos> where there is one), NaN beyond the length of a prompt"
)


def build_dataset(writer: ArrayWriter, layers: LayerCoords, padding: str) -> xr.Dataset:
    """Build a Dataset of the arrays of a capture; nothing is copied."""
    variables = {
        name: (dims, writer.arrays[name], attrs_of(name)) for name, dims in writer.dims.items()
    }
    return xr.Dataset(variables, coords=_coords(writer, layers), attrs=provenance(writer, padding))


def attrs_of(name: str) -> dict[str, Any]:
    """Describe a variable: what it is, its units, its bounds and its source."""
    if name in KEPT:
        return {"long_name": KEPT[name], "units": "activation", "scale": "diverging"}
    statistic = statistics.load(name)
    attrs: dict[str, Any] = {
        "long_name": statistic.title,
        "units": statistic.units,
        "scale": statistic.scale,
        "source": statistic.source,
    }
    for bound, value in (("low", statistic.low), ("high", statistic.high)):
        if value is not None:
            attrs[bound] = float(value)
    return attrs


def _coords(writer: ArrayWriter, layers: LayerCoords) -> dict[str, Any]:
    """Collect the coordinates of tokens, layers, heads and of the dims of the statistics."""
    model = writer.model
    coords: dict[str, Any] = {
        "layer": np.arange(model.layers),
        "head": np.arange(model.heads),
        "kv_group": ("head", np.arange(model.heads) // (model.heads // model.kv_heads)),
        **position_coords(token_coords(model, writer.prompts), writer.width),
        **layers.coords(),
    }
    used = {dim for dims in writer.dims.values() for dim in dims}
    if writer.width > 1:
        starts = np.arange(0, writer.longest, writer.width)
        coords.update({dim: starts for dim in BINNED if dim in used})
    if "kv_head" in used:
        coords["kv_head"] = np.arange(model.kv_heads)
    labels = writer.labels(writer.longest)
    return coords | {dim: np.array(names) for dim, names in labels.items()}


def provenance(writer: ArrayWriter, padding: str) -> dict[str, Any]:
    """Describe where a capture comes from, for its attrs."""
    model, prompts, options = writer.model, writer.prompts, writer.options
    request = options.request
    weights = "sigmoid" if model.geometry.sigmoid else "softmax"
    return {
        "model": model.name,
        "revision": model.revision,
        "architecture": model.architecture,
        "attention": model.attention,
        "weights": weights,
        "dtype": str(model.dtype).removeprefix("torch."),
        "task": prompts.task,
        "seed": prompts.seed,
        "register": prompts.register,
        "redrawn": prompts.redrawn,
        "n_prompts": len(prompts.ids),
        "prompts_sha256": prompts.digest(),
        "special_tokens": {None: "of the tokenizer", True: "BOS", False: "no BOS"}[model.bos],
        "stats": list(options.stats),
        "first": request.first,
        "tile": request.tile,
        "clip": "" if request.clip is None else request.clip,
        "recent": request.recent,
        "share": request.share,
        "k": request.k,
        "horizon": list(request.horizon),
        "last": request.last,
        "edits": json.dumps([edit.describe() for edit in options.edits]) if options.edits else "",
        "reweighted": options.reweighted,
        "bins": "" if options.bins is None else options.bins,
        "bin_width": writer.width,
        "padding": padding,
        "convention": f"{WEIGHTS[weights]}, {CONVENTION}",
        "headscope": version("headscope"),
    }


def token_coords(model: Model, prompts: Prompts) -> dict[str, Any]:
    """Return the tokens along queries, and along a source where there is one."""
    token, token_id, length = _tokens(model, prompts.ids, prompts.names)
    coords: dict[str, Any] = {
        "token": (("prompt", "query"), token),
        "token_id": (("prompt", "query"), token_id),
        "length": (("prompt",), length),
    }
    if prompts.encoded is not None:
        coords["roles"] = (("prompt",), np.array(list(map(_roles, prompts.encoded.spans))))
    if prompts.pixels is not None:
        # A run is shown again later, and its images may have moved away.
        coords["pixels"] = (("prompt", "colour", "height", "width"), prompts.pixels.numpy())
    if prompts.sources:
        token, token_id, length = _tokens(model, prompts.sources, ())
        name = "key" if prompts.crossed else "source"
        if prompts.crossed:
            coords["key_token"] = (("prompt", "key"), token)
        coords[f"{name}_token_id"] = (("prompt", name), token_id)
        coords[f"{name}_length"] = (("prompt",), length)
    return coords


def _roles(spans: Mapping[str, Sequence[Sequence[int]]]) -> str:
    """Write where the parts of a task's prompt stand: first token and end, role by role.

    >>> _roles({"key": [(4, 5), (9,)]})
    '{"key": [[4, 6], [9, 10]]}'
    """
    ends = {
        role: [(at[0], at[-1] + 1) for at in spans_of if at] for role, spans_of in spans.items()
    }
    return json.dumps(ends)


def _tokens(
    model: Model, prompts: Sequence[Sequence[int]], names: Sequence[str]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Tabulate the tokens of prompts: words, ids and lengths."""
    longest = max(map(len, prompts))
    token_id = np.full((len(prompts), longest), -1, dtype=np.int64)
    token = np.full((len(prompts), longest), "", dtype=object)
    for row, ids in enumerate(prompts):
        token_id[row, : len(ids)] = ids
        token[row, : len(ids)] = names or model.to_str_tokens(ids)
    return token.astype(str), token_id, np.array([len(ids) for ids in prompts])


class LayerCoords:
    """Properties of whole layers, collected from their attention calls.

    With ``keeps_keys`` q and k are kept, so that a position bias must be kept beside them.
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
        """Return the collected properties along layers, heads and distances."""
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
        """Expand one row a layer to (layer, head)."""
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


def position_coords(coords: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Move coords of single tokens from the dim query to position, where queries are in bins."""
    if width == 1:
        return dict(coords)
    return {
        name: (tuple("position" if dim == "query" else dim for dim in dims), values)
        for name, (dims, values) in coords.items()
    }

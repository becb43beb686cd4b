"""Head outputs in the residual stream: z through the head's slice of the output projection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from headscope.kernels.refusal import Refused

if TYPE_CHECKING:
    from headscope.probes.model import Model

# What architectures call the projection from the heads back to the residual stream.
NAMES = ("o_proj", "c_proj", "out_proj", "dense")


def output_weights(model: Model) -> Float[Tensor, "layer head size residual"]:
    """Return each head's slice of the output projection; NaN in layers without an attention map.

    Raises
    ------
    Refused
        When a layer's attention module has no output projection of a known name, or its input is
        not heads × head size.
    """
    found: dict[int, Tensor] = {}
    for module in model.module.modules():
        layer = getattr(module, "layer_idx", None)
        projection = next((getattr(module, name) for name in NAMES if hasattr(module, name)), None)
        if layer in model.geometry.attending and projection is not None:
            found[layer] = _matrix(projection)
    if sorted(found) != model.geometry.attending:
        raise Refused(
            f"model: no output projection ({', '.join(NAMES)}) found in the attention of every "
            f"layer of {model.name}"
        )
    rows = {layer: each.detach().float().cpu() for layer, each in found.items()}
    if any(each.shape[0] % model.heads for each in rows.values()):
        raise Refused(f"model: the output projection of {model.name} does not split into heads")
    split = {layer: one.reshape(model.heads, -1, one.shape[-1]) for layer, one in rows.items()}
    absent = torch.full_like(next(iter(split.values())), float("nan"))
    return torch.stack([split.get(layer, absent) for layer in range(model.layers)])


def _matrix(projection: Any) -> Tensor:
    """Return the weight as (input, output); GPT-2's Conv1D stores it that way, Linear does not."""
    projection = getattr(projection, "original_component", projection)
    weight: Tensor = projection.weight
    return weight if type(projection).__name__ == "Conv1D" else weight.T


def mean_outputs(
    capture: xr.Dataset, weights: Float[Tensor, "layer head size residual"]
) -> Float[Tensor, "prompt head residual"]:
    """Return every head's output in the residual stream, averaged over the positions of a prompt.

    The heads of all layers stand in one dimension, layer by layer.
    """
    mean = capture["z"].mean("query", skipna=True).transpose("prompt", "layer", "head", ...)
    outputs = torch.einsum("plhs,lhsr->plhr", torch.from_numpy(mean.values).float(), weights)
    return outputs.flatten(1, 2)

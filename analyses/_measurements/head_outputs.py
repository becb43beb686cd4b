"""Head outputs in the residual stream: z through the head's slice of the output projection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from headscope.probes.models.model import Model


def output_weights(model: Model) -> Float[Tensor, "layer head size residual"]:
    """Return each head's slice of the output projection; NaN in layers without an attention map."""
    from headscope.probes.attention import projections

    projected = projections.read(model, ("o",))
    split = {layer: projected.of(layer, "o").float() for layer in model.geometry.attending}
    absent = torch.full_like(next(iter(split.values())), float("nan"))
    return torch.stack([split.get(layer, absent) for layer in range(model.layers)])


def mean_outputs(
    capture: xr.Dataset, weights: Float[Tensor, "layer head size residual"]
) -> Float[Tensor, "prompt head residual"]:
    """Return every head's output in the residual stream, averaged over the positions of a prompt.

    The heads of all layers stand in one dimension, layer by layer.
    """
    mean = capture["z"].mean("query", skipna=True).transpose("prompt", "layer", "head", ...)
    outputs = torch.einsum("plhs,lhsr->plhr", torch.from_numpy(mean.values).float(), weights)
    return outputs.flatten(1, 2)

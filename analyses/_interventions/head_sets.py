"""Sets of heads as masks (set, layer, head), and values by head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headscope.analyses._stats.bootstrap import Array

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

Head = tuple[int, int]


def first_layers(sets: Bool[Tensor, "set layer head"]) -> Int[Tensor, " set"]:
    """Return the first layer that each set has heads of; behind the last for a set of none."""
    layers = sets.any(-1)
    return torch.where(layers.any(-1), layers.int().argmax(-1), layers.shape[1])


def every_head(model: Model) -> Bool[Tensor, "set layer head"]:
    """Return the sets of one head each, in order, of the layers that have an attention map."""
    layers, width = model.layers, model.heads
    single = torch.eye(layers * width, dtype=torch.bool).reshape(layers, width, layers, width)
    return single[model.geometry.attending].flatten(0, 1)


def every_group(model: Model) -> Bool[Tensor, "set layer head"]:
    """Return the sets of the query heads that share one KV head, in order."""
    group = model.heads // model.kv_heads
    single = every_head(model)
    return single.reshape(-1, group, *single.shape[1:]).any(1)


def masks(model: Model, sets: Sequence[Sequence[Head]]) -> Bool[Tensor, "set layer head"]:
    """Return the mask of each set of heads."""
    result = torch.zeros(len(sets), model.layers, model.heads, dtype=torch.bool)
    for number, heads in enumerate(sets):
        for layer, head in heads:
            result[number, layer, head] = True
    return result


def fill_layers(model: Model, values: Array) -> Array:
    """Expand heads of layers with an attention map to all layers (..., layer, head).

    The last axis of ``values`` holds the heads, or KV heads, of these layers in order.
    """
    layers = model.geometry.attending
    inner = values.reshape(*values.shape[:-1], len(layers), -1)
    result = np.full((*values.shape[:-1], model.layers, inner.shape[-1]), np.nan)
    result[..., layers, :] = inner
    return result

"""Biases: a model's relative position bias, one row a head, so that windows follow from q and k."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.models.model import Model


def coords(model: Model, biases: Mapping[int, npt.NDArray[np.float32]]) -> dict[str, Any]:
    """Lay the rows of all layers side by side, NaN where a layer has none."""
    reach = max(one.shape[1] for one in biases.values()) // 2
    table = np.full((model.layers, model.heads, 2 * reach + 1), np.nan, dtype=np.float32)
    for layer, values in biases.items():
        table[layer] = values
    return {
        "position_bias": (("layer", "head", "relative"), table),
        "relative": np.arange(-reach, reach + 1),
    }


def by_distance(bias: Tensor) -> npt.NDArray[np.float32]:
    """Read a relative position bias as one row a head over key - query, -(n - 1) … n - 1.

    Raises
    ------
    NotApplicable
        When it depends on more than the distance, so that q, k and lse would not tell the weights.
    """
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

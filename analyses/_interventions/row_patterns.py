"""Patterns and knock-outs of heads that are chosen anew in every row of the batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool
from torch import Tensor

from headscope.kernels.api import WeightEdits
from headscope.kernels.errors import InvalidInput
from headscope.probes.interventions.base import Edit

if TYPE_CHECKING:
    from headscope.probes.models.model import Geometry


@dataclass(frozen=True)
class RowInject(Edit):
    """Put a map known by name in place of the weights of heads chosen in every row of the batch.

    ``previous`` and ``first`` as in `headscope.probes.interventions.Inject`; ``hidden_first``
    hides the first key.
    """

    chosen: Bool[Tensor, "batch layer head"]
    pattern: str

    def inside(self, layer: int, shape: tuple[int, int, int, int]) -> WeightEdits | None:
        """Edit the chosen heads of one layer, row by row."""
        batch, heads, queries, keys = shape
        mask = self.chosen[:, layer]
        if not bool(mask.any()):
            return None
        if self.pattern == "hidden_first":
            bias = torch.zeros(batch, heads, keys)
            bias[:, :, 0] = torch.where(mask, -math.inf, 0.0)
            return WeightEdits(key_bias=bias)
        looked = torch.zeros(queries, dtype=torch.long)
        if self.pattern == "previous":
            looked = (torch.arange(queries) - 1).clamp_min(0)
        fixed = torch.nn.functional.one_hot(looked, keys).float()
        own = torch.full_like(fixed, math.nan)
        return WeightEdits(pattern=torch.where(mask[:, :, None, None], fixed, own))

    def check(self, shape: Geometry) -> None:
        """Refuse choices of another shape."""
        if tuple(self.chosen.shape[1:]) != (shape.layers, shape.heads):
            raise InvalidInput(
                f"chosen: shape {tuple(self.chosen.shape)}; "
                f"the model has {shape.layers} layers × {shape.heads} heads"
            )

    def describe(self) -> dict[str, object]:
        """Name the edit."""
        return {"edit": "RowInject", "rows": len(self.chosen), "pattern": self.pattern}

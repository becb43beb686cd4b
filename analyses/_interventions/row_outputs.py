"""Edits of head outputs that differ from row to row of a batch: many ablations in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.kernels.errors import InvalidInput
from headscope.probes.interventions.base import Edit

if TYPE_CHECKING:
    from headscope.probes.models.model import Geometry


@dataclass(frozen=True)
class RowGate(Edit):
    """Multiply the output of every head by a number of its own in every row of the batch."""

    values: Float[Tensor, "batch layer head"]

    def apply(
        self, layer: int, z: Float[Tensor, "batch head query size"]
    ) -> Float[Tensor, "batch head query size"]:
        """Scale the heads of one layer, row by row."""
        return z * self.values[:, layer].to(z)[:, :, None, None]

    def check(self, shape: Geometry) -> None:
        """Refuse gates of another shape."""
        _check_shape(self.values, shape)

    def describe(self) -> dict[str, object]:
        """Name the edit."""
        return {"edit": "RowGate", "rows": len(self.values)}


@dataclass(frozen=True)
class RowReplace(Edit):
    """Put a fixed vector in place of chosen heads, chosen anew in every row of the batch.

    Positions before ``first`` are left alone.
    """

    chosen: Bool[Tensor, "batch layer head"]
    values: Float[Tensor, "layer head size"]
    first: int = 0

    def apply(
        self, layer: int, z: Float[Tensor, "batch head query size"]
    ) -> Float[Tensor, "batch head query size"]:
        """Replace the chosen heads of one layer, row by row."""
        fixed = self.values[layer].to(z)[:, None, :].expand_as(z)
        taken = self.chosen[:, layer].to(z.device)[:, :, None, None]
        if self.first:
            late = torch.arange(z.shape[2], device=z.device) >= self.first
            taken = taken & late[:, None]
        return torch.where(taken, fixed, z)

    def check(self, shape: Geometry) -> None:
        """Refuse choices of another shape."""
        _check_shape(self.chosen, shape)

    def describe(self) -> dict[str, object]:
        """Name the edit."""
        return {"edit": "RowReplace", "rows": len(self.chosen), "first": self.first}


@dataclass(frozen=True)
class RowPatch(Edit):
    """Put other outputs, position by position, in place of heads chosen anew in every row.

    The rows of the batch are the rows of ``values`` over and over.
    """

    chosen: Bool[Tensor, "batch layer head"]
    values: Float[Tensor, "row layer head query size"]

    def apply(
        self, layer: int, z: Float[Tensor, "batch head query size"]
    ) -> Float[Tensor, "batch head query size"]:
        """Replace the chosen heads of one layer, row by row."""
        other = self.values[:, layer, :, : z.shape[2]].to(z)
        other = other.repeat(len(z) // len(other), 1, 1, 1)
        return torch.where(self.chosen[:, layer].to(z.device)[:, :, None, None], other, z)

    def check(self, shape: Geometry) -> None:
        """Refuse choices of another shape."""
        _check_shape(self.chosen, shape)

    def describe(self) -> dict[str, object]:
        """Name the edit."""
        return {"edit": "RowPatch", "rows": len(self.chosen)}


@dataclass(frozen=True)
class RowBlend(Edit):
    """Move the output of every head a share of the way to other outputs, row by row.

    The gradient in ``shares`` at 0 is the first-order effect of patching a head.
    """

    shares: Float[Tensor, "batch layer head"]
    values: Float[Tensor, "batch layer head query size"]

    def apply(
        self, layer: int, z: Float[Tensor, "batch head query size"]
    ) -> Float[Tensor, "batch head query size"]:
        """Blend the heads of one layer, row by row."""
        other = self.values[:, layer, :, : z.shape[2]].to(z)
        return z + self.shares[:, layer].to(z)[:, :, None, None] * (other - z)

    def check(self, shape: Geometry) -> None:
        """Refuse shares of another shape."""
        _check_shape(self.shares, shape)

    def describe(self) -> dict[str, object]:
        """Name the edit."""
        return {"edit": "RowBlend", "rows": len(self.shares)}


def taking_out(
    chosen: Bool[Tensor, "batch layer head"],
    values: Float[Tensor, ...] | None = None,
    first: int = 0,
) -> Any:
    """Return the edit that takes the chosen heads out of every row of a batch.

    Parameters
    ----------
    chosen
        Which heads each row loses.
    values
        What stands in their place: one vector a head (layer, head, size) or outputs on other
        prompts (row, layer, head, query, size); zero without them.
    first
        First position that is edited; zero and vectors only.
    """
    if values is None and first:
        return RowReplace(chosen, torch.zeros(*chosen.shape[1:], 1), first)
    if values is None:
        return RowGate((~chosen).float())
    if values.ndim == 3:
        return RowReplace(chosen, values, first)
    return RowPatch(chosen, values)


def _check_shape(values: Tensor, shape: Geometry) -> None:
    if tuple(values.shape[1:]) != (shape.layers, shape.heads):
        raise InvalidInput(
            f"values: shape {tuple(values.shape)}; "
            f"the model has {shape.layers} layers × {shape.heads} heads"
        )

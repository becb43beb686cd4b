"""Edits that differ from row to row of a batch: many variants of a prompt in one pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.kernels.api import WeightEdits
from headscope.kernels.errors import InvalidInput
from headscope.probes.interventions.base import Edit

if TYPE_CHECKING:
    from headscope.probes.models.model import Geometry


@dataclass(frozen=True)
class RowEdit(Edit):
    """An edit with a number, or a choice, for every head in every row of the batch."""

    rows: Float[Tensor, "batch layer head ..."] | Bool[Tensor, "batch layer head"]

    def check(self, shape: Geometry) -> None:
        """Refuse rows of another shape."""
        if tuple(self.rows.shape[1:3]) != (shape.layers, shape.heads):
            raise InvalidInput(
                f"rows: shape {tuple(self.rows.shape)}; "
                f"the model has {shape.layers} layers × {shape.heads} heads"
            )

    def describe(self) -> dict[str, object]:
        """Describe the edit."""
        return {"edit": type(self).__name__, "rows": len(self.rows)}


class RowGate(RowEdit):
    """Multiply the output of every head by a number of its own: `Gate`, row by row."""

    def apply(
        self, layer: int, z: Float[Tensor, "batch head query size"]
    ) -> Float[Tensor, "batch head query size"]:
        """Scale the heads of one layer."""
        return z * self.rows[:, layer].to(z)[:, :, None, None]


@dataclass(frozen=True)
class RowReplace(RowEdit):
    """Replace the outputs of chosen heads: `Replace`, row by row.

    The values are one vector a head, from position ``first`` on, or outputs on other prompts,
    position by position, that the rows of the batch take over and over.
    """

    values: Float[Tensor, "layer head size"] | Float[Tensor, "prompt layer head query size"]
    first: int = 0

    def apply(
        self, layer: int, z: Float[Tensor, "batch head query size"]
    ) -> Float[Tensor, "batch head query size"]:
        """Replace the chosen heads of one layer."""
        chosen = self.rows[:, layer].to(z.device)[:, :, None, None]
        if self.values.ndim == 3:
            other = self.values[layer].to(z)[:, None, :].expand_as(z)
        else:
            other = self.values[:, layer, :, : z.shape[2]].to(z)
            other = other.repeat(len(z) // len(other), 1, 1, 1)
        if self.first:
            late = torch.arange(z.shape[2], device=z.device) >= self.first
            chosen = chosen & late[:, None]
        return torch.where(chosen, other, z)


@dataclass(frozen=True)
class RowBlend(RowEdit):
    """Move the output of every head a share of the way to other outputs.

    The gradient in the shares at 0 is the first-order effect of patching a head.
    """

    values: Float[Tensor, "batch layer head query size"]

    def apply(
        self, layer: int, z: Float[Tensor, "batch head query size"]
    ) -> Float[Tensor, "batch head query size"]:
        """Blend the heads of one layer."""
        other = self.values[:, layer, :, : z.shape[2]].to(z)
        return z + self.rows[:, layer].to(z)[:, :, None, None] * (other - z)


class RowScale(RowEdit):
    """Multiply weights by a factor for every key (batch, layer, head, key): `ScaleKeys`, by row."""

    def inside(self, layer: int, shape: tuple[int, int, int, int]) -> WeightEdits | None:
        """Add the logarithms of the factors to the logits of one layer."""
        factors = self.rows[:, layer]
        return None if bool((factors == 1).all()) else WeightEdits(key_bias=factors.log())


@dataclass(frozen=True)
class RowInject(RowEdit):
    """Replace the weights of chosen heads by a named pattern: `Inject`, row by row.

    ``previous`` and ``first`` as there; ``hidden_first`` hides the first key.
    """

    pattern: str

    def inside(self, layer: int, shape: tuple[int, int, int, int]) -> WeightEdits | None:
        """Edit the chosen heads of one layer."""
        batch, heads, queries, keys = shape
        chosen = self.rows[:, layer]
        if not bool(chosen.any()):
            return None
        if self.pattern == "hidden_first":
            bias = torch.zeros(batch, heads, keys)
            bias[:, :, 0] = torch.where(chosen, -math.inf, 0.0)
            return WeightEdits(key_bias=bias)
        key = torch.zeros(queries, dtype=torch.long)
        if self.pattern == "previous":
            key = (torch.arange(queries) - 1).clamp_min(0)
        fixed = torch.nn.functional.one_hot(key, keys).float()
        own = torch.full_like(fixed, math.nan)
        return WeightEdits(pattern=torch.where(chosen[:, :, None, None], fixed, own))

    def describe(self) -> dict[str, object]:
        """Describe the edit and its pattern."""
        return {**super().describe(), "pattern": self.pattern}


@dataclass(frozen=True)
class RowWeights(Edit):
    """Replace the weights of one query of one head, row by row of the batch."""

    head: tuple[int, int]
    queries: Int[Tensor, " batch"]
    weights: Float[Tensor, "batch key"]

    def inside(self, layer: int, shape: tuple[int, int, int, int]) -> WeightEdits | None:
        """Edit the query of every row."""
        if layer != self.head[0]:
            return None
        pattern = torch.full(shape, math.nan)
        pattern[torch.arange(len(pattern)), self.head[1], self.queries] = self.weights
        return WeightEdits(pattern=pattern)

    def describe(self) -> dict[str, object]:
        """Describe the edit and its head."""
        return {**super().describe(), "head": list(self.head), "rows": len(self.queries)}


def ablate_rows(
    chosen: Bool[Tensor, "batch layer head"],
    values: Float[Tensor, ...] | None = None,
    first: int = 0,
) -> RowEdit:
    """Return the edit that ablates the chosen heads of every row of a batch.

    Without ``values`` their outputs are zero; else the values of `RowReplace`, from ``first`` on.
    """
    if values is None and not first:
        return RowGate((~chosen).float())
    if values is None:
        values = torch.zeros(*chosen.shape[1:], 1)
    return RowReplace(chosen, values, first)

"""Interventions on head outputs z: gate, ablate, replace, offset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.probes.interventions.base import Edit, HeadEdit, HeadOutputs, VectorEdit, check_shape

if TYPE_CHECKING:
    from headscope.probes.models.model import Geometry


@dataclass(frozen=True)
class Gate(Edit):
    """Multiply the output of every head by a number: 1 leaves it, 0 removes it.

    There is one number per head, dims layer, head. The gradient with respect to ``values`` at 1 is
    the first-order importance of the heads (Michel et al. 2019, head importance by gate gradient).

    Examples
    --------
    >>> import torch
    >>> gate = Gate(torch.tensor([[1.0, 0.0]]))
    >>> gate.apply(0, torch.ones(1, 2, 1, 1)).flatten().tolist()
    [1.0, 0.0]
    """

    values: Float[Tensor, "layer head"]

    def apply(self, layer: int, z: HeadOutputs) -> HeadOutputs:
        """Scale the heads of one layer."""
        return z * self.values[layer].to(z)[:, None, None]

    def check(self, shape: Geometry) -> None:
        """Refuse gates whose shape is not layers × heads."""
        check_shape("Gate.values", self.values, (shape.layers, shape.heads))

    def describe(self) -> dict[str, object]:
        """Describe the edit and its gates."""
        return {"edit": "Gate", "values": self.values.detach().cpu().tolist()}


@dataclass(frozen=True)
class Ablate(HeadEdit):
    """Set the output of some heads to zero.

    ``heads`` names them as (layer, head) pairs.

    Examples
    --------
    >>> import torch
    >>> Ablate(heads=((0, 1),)).apply(0, torch.ones(1, 2, 1, 1)).flatten().tolist()
    [1.0, 0.0]
    """

    def apply(self, layer: int, z: HeadOutputs) -> HeadOutputs:
        """Zero the named heads of one layer."""
        rows = self.rows(layer)
        return z.index_fill(1, torch.tensor(rows, device=z.device), 0.0) if rows else z


@dataclass(frozen=True)
class Replace(VectorEdit):
    """Replace the output of some heads by a fixed vector, at every position.

    With the mean of ``z`` over a reference set this is mean ablation. The vectors, ``values``, have
    dims layer, head, size; only the rows of ``heads`` are read.

    Examples
    --------
    >>> import torch
    >>> edit = Replace(heads=((0, 1),), values=torch.full((1, 2, 1), 5.0))
    >>> edit.apply(0, torch.ones(1, 2, 1, 1)).flatten().tolist()
    [1.0, 5.0]
    """

    def change(self, z: HeadOutputs, vectors: Float[Tensor, "head 1 size"]) -> HeadOutputs:
        """Return the vectors themselves."""
        return vectors.expand_as(z)


@dataclass(frozen=True)
class Offset(VectorEdit):
    """Add a fixed vector to the output of some heads, at every position.

    LoFiT learns such vectors for a few heads (Yin et al. 2024); also for steering head by head. The
    vectors are given as for `Replace`.
    """

    def change(self, z: HeadOutputs, vectors: Float[Tensor, "head 1 size"]) -> HeadOutputs:
        """Return the outputs with the vectors added."""
        return z + vectors

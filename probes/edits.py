"""Edits: interventions on the heads of a model, as values.

An edit acts on ``z``, the output of every head before it is mixed into the residual stream, in
the same pass that captures. Edits compose in the order given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.kernels.refusal import Refused

Head = tuple[int, int]


class Edit(Protocol):
    """What the seam asks of an edit."""

    def apply(
        self, layer: int, z: Float[Tensor, "batch head query size"]
    ) -> Float[Tensor, "batch head query size"]:
        """Return the outputs of the heads of one layer after the edit."""
        ...

    def check(self, layers: int, heads: int, size: int) -> None:
        """Refuse an edit that does not fit a model of this shape."""
        ...

    def describe(self) -> dict[str, object]:
        """Say what the edit does, as JSON, for the provenance of a result."""
        ...


@dataclass(frozen=True)
class Gate:
    """Multiply the output of every head by a number: 1 leaves it, 0 removes it.

    The gradient with respect to ``values`` at 1 is the first-order importance of the heads
    (Michel et al. 2019, head importance by gate gradient).

    Attributes
    ----------
    values
        One number per head, dims layer, head; may require a gradient.

    Examples
    --------
    >>> import torch
    >>> gate = Gate(torch.tensor([[1.0, 0.0]]))
    >>> gate.apply(0, torch.ones(1, 2, 1, 1)).flatten().tolist()
    [1.0, 0.0]
    """

    values: Float[Tensor, "layer head"]

    def apply(
        self, layer: int, z: Float[Tensor, "batch head query size"]
    ) -> Float[Tensor, "batch head query size"]:
        """Scale the heads of one layer."""
        return z * self.values[layer].to(z)[:, None, None]

    def check(self, layers: int, heads: int, size: int) -> None:
        """Refuse gates whose shape is not layers × heads."""
        _check_shape("Gate.values", self.values, (layers, heads))

    def describe(self) -> dict[str, object]:
        """Name the edit and its gates."""
        return {"edit": "Gate", "values": self.values.detach().cpu().tolist()}


@dataclass(frozen=True)
class Ablate:
    """Set the output of some heads to zero.

    Attributes
    ----------
    heads
        The heads, as (layer, head) pairs.

    Examples
    --------
    >>> import torch
    >>> Ablate(heads=((0, 1),)).apply(0, torch.ones(1, 2, 1, 1)).flatten().tolist()
    [1.0, 0.0]
    """

    heads: Sequence[Head]

    def apply(
        self, layer: int, z: Float[Tensor, "batch head query size"]
    ) -> Float[Tensor, "batch head query size"]:
        """Zero the named heads of one layer."""
        rows = [head for at, head in self.heads if at == layer]
        return z.index_fill(1, torch.tensor(rows, device=z.device), 0.0) if rows else z

    def check(self, layers: int, heads: int, size: int) -> None:
        """Refuse heads that the model does not have."""
        _check_heads("Ablate.heads", self.heads, layers, heads)

    def describe(self) -> dict[str, object]:
        """Name the edit and its heads."""
        return {"edit": "Ablate", "heads": [list(head) for head in self.heads]}


@dataclass(frozen=True)
class Replace:
    """Put a fixed vector in place of the output of some heads, at every position.

    With the mean of ``z`` over a reference set this is mean ablation.

    Attributes
    ----------
    heads
        The heads, as (layer, head) pairs.
    values
        The vectors, dims layer, head, size; only the rows of ``heads`` are read.

    Examples
    --------
    >>> import torch
    >>> edit = Replace(heads=((0, 1),), values=torch.full((1, 2, 1), 5.0))
    >>> edit.apply(0, torch.ones(1, 2, 1, 1)).flatten().tolist()
    [1.0, 5.0]
    """

    heads: Sequence[Head]
    values: Float[Tensor, "layer head size"]

    def apply(
        self, layer: int, z: Float[Tensor, "batch head query size"]
    ) -> Float[Tensor, "batch head query size"]:
        """Replace the named heads of one layer."""
        rows = [head for at, head in self.heads if at == layer]
        if not rows:
            return z
        fixed = self.values[layer].to(z)[:, None, :].expand_as(z)
        chosen = torch.zeros(z.shape[1], dtype=torch.bool, device=z.device)
        chosen[rows] = True
        return torch.where(chosen[:, None, None], fixed, z)

    def check(self, layers: int, heads: int, size: int) -> None:
        """Refuse heads that the model does not have and vectors of another shape."""
        _check_heads("Replace.heads", self.heads, layers, heads)
        _check_shape("Replace.values", self.values, (layers, heads, size))
        for layer, head in self.heads:
            if not bool(torch.isfinite(self.values[layer, head]).all()):
                raise Refused(f"Replace.values: L{layer}H{head} holds NaN or infinity")

    def describe(self) -> dict[str, object]:
        """Name the edit, its heads and a digest of the vectors."""
        data = self.values.detach().cpu().float().contiguous().numpy().tobytes()
        return {
            "edit": "Replace",
            "heads": [list(head) for head in self.heads],
            "values_sha256": hashlib.sha256(data).hexdigest(),
        }


def _check_heads(field: str, heads: Sequence[Head], layers: int, width: int) -> None:
    for layer, head in heads:
        if not 0 <= layer < layers:
            raise Refused(f"{field}: no layer {layer}; the model has layers 0 to {layers - 1}")
        if not 0 <= head < width:
            raise Refused(f"{field}: no head {head}; every layer has heads 0 to {width - 1}")


def _check_shape(field: str, values: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(values.shape) != expected:
        raise Refused(
            f"{field}: shape {tuple(values.shape)}, but the model's heads ask for {expected}"
        )

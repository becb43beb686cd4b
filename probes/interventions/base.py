"""Base classes of interventions on attention heads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.kernels.api import WeightEdits
from headscope.kernels.errors import InvalidInput

if TYPE_CHECKING:
    from headscope.probes.models.model import Geometry

Head = tuple[int, int]
HeadOutputs = Float[Tensor, "batch head query size"]


KINDS: dict[str, type[Edit]] = {}
"""The edits of this package by name, those that a file of edits may hold."""


class Edit:
    """Base class of interventions; override only the hooks you need.

    An edit acts inside the attention, on its weights, or afterwards on ``z``, the output of every
    head before it is mixed into the residual stream, in the same pass that captures.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """Register the edits of this package; of others a file could not be read back."""
        super().__init_subclass__(**options)
        package = __name__.rpartition(".")[0]
        if cls.__module__.startswith(f"{package}.") and cls.__module__ != __name__:
            KINDS[cls.__name__] = cls

    def inside(self, layer: int, shape: tuple[int, int, int, int]) -> WeightEdits | None:
        """Return the changes inside the attention of a layer (batch, head, query, key)."""
        return None

    def apply(self, layer: int, z: HeadOutputs) -> HeadOutputs:
        """Return the outputs of the heads of one layer after the edit."""
        return z

    def check(self, shape: Geometry) -> None:
        """Refuse an edit that does not fit a model of this shape."""

    def describe(self) -> dict[str, object]:
        """Describe the edit as JSON, for the provenance of a result."""
        return {"edit": type(self).__name__}


@dataclass(frozen=True)
class HeadEdit(Edit):
    """An edit of some heads, named in ``heads`` as (layer, head) pairs."""

    heads: Sequence[Head]

    def rows(self, layer: int) -> list[int]:
        """List the edited heads of one layer."""
        return [head for at, head in self.heads if at == layer]

    def check(self, shape: Geometry) -> None:
        """Refuse heads that the model does not have."""
        check_heads(f"{type(self).__name__}.heads", self.heads, shape)

    def describe(self) -> dict[str, object]:
        """Describe the edit and its fields, as JSON, for the provenance of a result.

        Tensors stand as the SHA-256 of their numbers.
        """
        entries: dict[str, object] = {"edit": type(self).__name__}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                entries[f"{field.name}_sha256"] = digest(value)
            else:
                entries[field.name] = _plain(value)
        return entries


@dataclass(frozen=True)
class VectorEdit(HeadEdit):
    """An edit of some heads with a vector for each, in ``values``."""

    values: Float[Tensor, "layer head size"]

    def apply(self, layer: int, z: HeadOutputs) -> HeadOutputs:
        """Change the outputs of the named heads of one layer."""
        rows = self.rows(layer)
        if not rows:
            return z
        chosen = torch.zeros(z.shape[1], dtype=torch.bool, device=z.device)
        chosen[rows] = True
        changed = self.change(z, self.values[layer].to(z)[:, None])
        return torch.where(chosen[:, None, None], changed, z)

    def change(self, z: HeadOutputs, vectors: Float[Tensor, "head 1 size"]) -> HeadOutputs:
        """Return what takes the place of the heads' outputs."""
        raise NotImplementedError

    def check(self, shape: Geometry) -> None:
        """Refuse heads that the model does not have and vectors that do not fit them."""
        super().check(shape)
        field = f"{type(self).__name__}.values"
        check_shape(field, self.values, (shape.layers, shape.heads, shape.value_size))
        for layer, head in self.heads:
            if not bool(torch.isfinite(self.values[layer, head]).all()):
                raise InvalidInput(f"{field}: L{layer}H{head} holds NaN or infinity")


def check_heads(field: str, heads: Sequence[Head], shape: Geometry) -> None:
    """Refuse heads that a model does not have."""
    for layer, head in heads:
        if not 0 <= layer < shape.layers:
            raise InvalidInput(
                f"{field}: no layer {layer}; the model has layers 0 to {shape.layers - 1}"
            )
        if layer in shape.without:
            raise InvalidInput(
                f"{field}: layer {layer} has no attention map; "
                f"layers with one are {', '.join(map(str, shape.attending))}"
            )
        if not 0 <= head < shape.heads:
            raise InvalidInput(
                f"{field}: no head {head}; every layer has heads 0 to {shape.heads - 1}"
            )


def check_shape(field: str, values: Tensor, expected: tuple[int, ...]) -> None:
    """Refuse a tensor of another shape."""
    if tuple(values.shape) != expected:
        raise InvalidInput(
            f"{field}: shape {tuple(values.shape)}, but the model's heads ask for {expected}"
        )


def _plain(value: Any) -> Any:
    """Convert heads, positions and other sequences into lists, as JSON has them."""
    single = isinstance(value, str) or not hasattr(value, "__iter__")
    return value if single else [_plain(item) for item in value]


def digest(values: Tensor) -> str:
    """Return a hash of the numbers of a tensor."""
    data = values.detach().cpu().float().contiguous().numpy().tobytes()
    return hashlib.sha256(data).hexdigest()

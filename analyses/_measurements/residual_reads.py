"""How heads read the residual stream: straight, or through a norm."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headscope.analyses._measurements.residual_writes import (
    Norm,
    equal,
    is_norm,
    read_norm,
    streams,
    through,
)
from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.attention.projections import Weights
    from headscope.probes.models.model import Model


@dataclass(frozen=True)
class Read:
    """The map from the stream to what the queries and keys of a layer read: the norm, or none."""

    module: nn.Module | None
    norm: Norm | None

    def transposed(
        self, directions: Float[Tensor, "*batch residual"]
    ) -> Float[Tensor, "*batch residual"]:
        """Map directions behind the norm to those of the stream, up to the frozen scale."""
        return directions if self.norm is None else self.norm.transposed(directions)

    def bias(self, width: int) -> Float[Tensor, " residual"]:
        """Return what the norm adds, whatever the stream."""
        empty = torch.zeros(width, dtype=torch.float64)
        return empty if self.norm is None else self.norm.bias

    def scale(
        self, model: Model, stream: Float[Tensor, "*batch residual"]
    ) -> Float[Tensor, "*batch"]:
        """Return the frozen scale of streams."""
        if self.norm is None or self.module is None:
            return torch.ones(stream.shape[:-1], dtype=torch.float64)
        return self.norm.scale(stream, through(self.module, model, stream))


def reads(model: Model, weights: Weights) -> dict[int, Read]:
    """Find what stands between the residual stream and the queries and keys of each layer.

    ``weights`` are the projections of both. What enters them must be the stream before the block,
    or what a norm makes of it.
    """
    ids = (torch.arange(5) * 3 + 2).remainder(model.vocabulary)[None]
    inputs: dict[nn.Module, Tensor] = {}
    norms: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def enter(part: nn.Module, args: Any) -> None:
        inputs[part] = args[0].detach()

    def leave(part: nn.Module, args: Any, result: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(result, Tensor):
            norms[part] = args[0].detach(), result.detach()

    projections = {projection.module for projection in weights.projections.values()}
    hooks = [part.register_forward_pre_hook(enter) for part in projections]
    hooks += [part.register_forward_hook(leave) for part in filter(is_norm, model.module.modules())]
    before = streams(model, ids, hooks)
    result = {}
    for layer in model.geometry.attending:
        entered = [inputs[weights.projections[layer, part].module] for part in ("q", "k")]
        result[layer] = _between(model, layer, before[layer], entered, norms)
    return result


def _between(
    model: Model,
    layer: int,
    stream: Tensor,
    entered: list[Tensor],
    norms: dict[nn.Module, tuple[Tensor, Tensor]],
) -> Read:
    """Find the norm that makes what enters the projections from the stream, or that none does."""
    vector = entered[0]
    if equal(vector, entered[1]):
        exact = partial(torch.equal, stream)
        if vector.shape == stream.shape and exact(vector.double().cpu()):
            return Read(None, None)
        for part, (before, after) in norms.items():
            if (
                before.shape == stream.shape
                and equal(vector, after)
                and exact(before.double().cpu())
            ):
                return Read(part, read_norm(part, model, stream.shape[-1]))
    raise NotApplicable(
        f"model: the queries and keys of layer {layer} of {model.name} do not read the residual "
        "stream, straight or through one norm, so their scores are no sum over what was written "
        "to it; use patching"
    )

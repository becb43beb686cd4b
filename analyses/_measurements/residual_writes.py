"""Norms as linear maps, their scales frozen, and how heads reach the residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headscope.kernels.api import Request
from headscope.kernels.errors import NotApplicable
from headscope.probes.attention import projections as weights
from headscope.probes.attention.forward import Reader, run
from headscope.probes.attention.residual_stream import blocks, watching

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headscope.probes.models.model import Model

# Shares of the largest number that rounding may make; in reduced precision units in the last place.
TOLERANCE, UNITS = 1e-3, 4


@dataclass(frozen=True)
class Norm:
    """A norm as a linear map of one vector, its scale frozen at what it is for that vector.

    ``gain`` and ``bias`` are factor and summand of each channel; ``centred`` says whether the mean
    over channels is taken away, as LayerNorm does and RMSNorm does not.
    """

    gain: Float[Tensor, " residual"]
    bias: Float[Tensor, " residual"]
    centred: bool

    def linear(self, vectors: Float[Tensor, "*batch residual"]) -> Float[Tensor, "*batch residual"]:
        """Map vectors up to the frozen scale."""
        if self.centred:
            vectors = vectors - vectors.mean(-1, keepdim=True)
        return vectors * self.gain

    def transposed(
        self, directions: Float[Tensor, "*batch residual"]
    ) -> Float[Tensor, "*batch residual"]:
        """Map directions behind the norm to those before it, up to the frozen scale."""
        directions = directions * self.gain
        if self.centred:
            directions = directions - directions.mean(-1, keepdim=True)
        return directions

    def scale(
        self,
        entered: Float[Tensor, "*batch residual"],
        normed: Float[Tensor, "*batch residual"],
        tolerance: float = TOLERANCE,
    ) -> Float[Tensor, "*batch"]:
        """Return the frozen scale of a norm's inputs, from its outputs."""
        linear, normed = self.linear(entered), normed - self.bias
        scale = (normed * linear).sum(-1) / linear.square().sum(-1)
        same(normed, linear * scale[..., None], "a norm", tolerance)
        return scale


@dataclass(frozen=True)
class Write:
    """The map from the sum of a layer's heads to the residual stream: a factor, or a norm."""

    factor: float
    module: nn.Module | None
    norm: Norm | None


def head_writes(model: Model) -> dict[int, Write]:
    """Measure how the output of each layer's heads enters the residual stream.

    A known vector is added to what the output projection gives while all other weights beside the
    attention give what they gave, a norm that takes the projection's output at its scale; the
    stream after the block must change by a multiple of that vector, or of what the norm makes of
    it.
    """
    output = weights.read(model, ("o",))
    projections = {
        layer: output.projections[layer, "o"].module for layer in model.geometry.attending
    }
    generator = torch.Generator().manual_seed(0)
    ids = (torch.arange(5) * 3 + 2).remainder(model.vocabulary)[None]
    width = output.of(min(projections), "o").shape[-1]
    pushes = {layer: torch.randn(width, generator=generator) for layer in projections}
    active: list[nn.Module] = []
    results: dict[nn.Module, Any] = {}
    entered: dict[nn.Module, Tensor] = {}
    attention: set[nn.Module] = set(projections.values())
    around: set[nn.Module] = set()

    def leave(part: nn.Module, args: Any, result: Any) -> None:
        active.pop()
        if part not in weighted:
            return
        results[part] = _copied(result)
        if args and isinstance(args[0], Tensor) and is_norm(part):
            entered[part] = _copied(args[0])

    def meet(call: Any, outputs: Any, z: Tensor) -> None:
        attention.update(call.module.modules())
        around.update(active)

    every = [part for block in blocks(model) for part in block.modules()]
    weighted = {part for part in every if next(part.parameters(recurse=False), None) is not None}
    hooks = [
        part.register_forward_pre_hook(lambda part, args: active.append(part)) for part in every
    ]
    hooks += [part.register_forward_hook(leave) for part in every]
    before = streams(model, ids, hooks, meet)
    # Weights alone: a module around them may add the stream to what they give, the push with it.
    fixed = [part for part in results if part not in attention | around]
    between = {
        layer: next((part for part in entered if equal(entered[part], results[module])), None)
        for layer, module in projections.items()
    }
    frozen = {layer: part for layer, part in between.items() if part is not None}
    norms = {layer: read_norm(part, model, width) for layer, part in frozen.items()}
    unit = UNITS * torch.finfo(model.dtype).eps
    rounding = max(TOLERANCE, unit)
    scales = {}
    for layer, part in frozen.items():
        pair = _exact(entered[part]), _exact(results[part])
        scales[layer] = norms[layer].scale(pair[0], pair[1], rounding)[..., None]
    fixed = [part for part in fixed if part not in frozen.values()]
    hooks = [
        part.register_forward_hook(lambda part, args, result: _copied(results[part]))
        for part in fixed
    ]
    hooks += [
        module.register_forward_hook(_pushing(pushes[layer], results[module]))
        for layer, module in projections.items()
    ]

    def freezing(layer: int) -> Any:
        def hook(part: nn.Module, args: Any, result: Tensor) -> Tensor:
            moved = norms[layer].linear(_exact(args[0]) - _exact(entered[part])) * scales[layer]
            total: Tensor = results[part] + moved.to(result)
            return total

        return hook

    hooks += [part.register_forward_hook(freezing(layer)) for layer, part in frozen.items()]
    after = streams(model, ids, hooks)
    writes = {}
    for layer, push in pushes.items():
        gone = after[layer] - before[layer]
        moved = (after[layer + 1] - before[layer + 1] - gone)[0]
        vector = push.double().expand_as(moved)
        if layer in norms:
            vector = norms[layer].linear(vector) * scales[layer][0]
        factor = float((moved * vector).sum() / vector.square().sum())
        off = float((moved - factor * vector).abs().max())
        bar = 1e-2 * factor * float(vector.abs().max()) + unit * float(after[layer + 1].abs().max())
        if factor < 1e-3 or off > bar:
            raise NotApplicable(
                f"model: the heads of layer {layer} of {model.name} do not write straight into the "
                "residual stream (another block stands between), so what they write is no sum; use "
                "patching or importance"
            )
        writes[layer] = Write(factor, between[layer], norms.get(layer))
    return writes


def straight(model: Model) -> dict[int, float]:
    """Return the factor by which each layer's heads enter the residual stream, or refuse a norm."""
    writes = head_writes(model)
    for layer, write in writes.items():
        if write.norm is not None:
            raise NotApplicable(
                f"model: the heads of layer {layer} of {model.name} do not write straight into the "
                "residual stream (a norm stands between), so what they write is no sum; see "
                "logit_attribution"
            )
    return {layer: write.factor for layer, write in writes.items()}


def parallel(model: Model) -> bool:
    """Return whether the MLP of a block reads the same stream as the attention, not what it wrote.

    A vector added to what the heads of a layer write then reaches no other weights of the block.
    """
    output = weights.read(model, ("o",))
    layer = min(model.geometry.attending)
    ids = (torch.arange(5) * 3 + 2).remainder(model.vocabulary)[None]
    width = output.of(layer, "o").shape[-1]
    push = torch.randn(width, generator=torch.Generator().manual_seed(0))
    module: Any = output.projections[layer, "o"].module
    weighted = [
        part for part in blocks(model)[layer].modules() if next(part.parameters(), None) is not None
    ]

    def entering() -> tuple[dict[nn.Module, Tensor], list[Any]]:
        entered: dict[nn.Module, Tensor] = {}

        def keep(part: nn.Module, args: Any, kwargs: Any) -> None:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            entered[part] = tensors[0]

        handles = [part.register_forward_pre_hook(keep, with_kwargs=True) for part in weighted]
        return entered, handles

    plain, hooks = entering()
    streams(model, ids, hooks)
    pushed, hooks = entering()
    streams(model, ids, [module.register_forward_hook(_pushing(push)), *hooks])
    return all(torch.equal(plain[part], pushed[part]) for part in plain)


def streams(
    model: Model, ids: Int[Tensor, "1 position"], hooks: Sequence[Any] = (), take: Any = None
) -> dict[int, Tensor]:
    """Return the residual stream at every boundary, in float64, and remove the hooks."""
    by_boundary: dict[int, Tensor] = {}
    try:
        with torch.no_grad(), watching(model, lambda at, stream: by_boundary.update({at: stream})):
            run(model, ids, Reader(Request(stats=()), take=take), head=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {at: stream.detach().double().cpu() for at, stream in by_boundary.items()}


def read_norm(norm: nn.Module, model: Model, width: int) -> Norm:
    """Read gain, bias and kind of a norm from its outputs for known vectors."""
    probe = torch.where(torch.arange(width) % 2 == 0, 1.0, -1.0).double()
    probe = probe * (1 + torch.arange(width).double() / width)
    zero = through(norm, model, torch.zeros(1, width))[0]
    scaled, moved = (through(norm, model, (1e3 * (probe + up))[None])[0] for up in (0.0, 1.0))
    centred = float((scaled - moved).abs().max()) < 1e-3 * float(scaled.abs().max())
    inner = probe - probe.mean() if centred else probe
    gain = (scaled - zero) / (inner / inner.square().mean().sqrt())
    return Norm(gain, zero, centred)


def same(first: Tensor, second: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Refuse where two arrays that a linear map with a frozen scale makes equal are not."""
    off = float((first - second).abs().max())
    if off > tolerance * max(float(first.abs().max()), float(second.abs().max()), 1e-6):
        raise NotApplicable(
            f"model: {what} of this model is no linear map with a frozen scale (off by {off:.2g}), "
            "so logits do not split into parts"
        )


def through(norm: nn.Module, model: Model, vectors: Tensor) -> Tensor:
    """Send vectors through a norm, in float64."""
    with torch.no_grad():
        normed: Tensor = norm(vectors.to(model.device, model.dtype)[None])[0]
    return normed.double().cpu()


def is_norm(part: nn.Module) -> bool:
    """Return whether a module has vectors alone for its weights, as norms have."""
    sizes = [weight.ndim for weight in part.parameters()]
    return bool(sizes) and set(sizes) == {1}


def equal(first: Tensor, second: Any) -> bool:
    """Return whether two tensors hold the same numbers."""
    return (
        isinstance(second, Tensor)
        and first.shape == second.shape
        and bool(torch.equal(first, second))
    )


def _copied(result: Any) -> Any:
    """Copy tensors, into which some models add in place; those that are traced are no such."""
    if type(result) is Tensor:
        return result.clone()
    return tuple(map(_copied, result)) if isinstance(result, tuple) else result


def _exact(values: Tensor) -> Tensor:
    return values.detach().double().cpu()


def _pushing(push: Tensor, recorded: Tensor | None = None) -> Any:
    """Add a vector to the output of a module, or to its earlier output."""

    def hook(part: nn.Module, args: Any, result: Tensor) -> Tensor:
        return (result if recorded is None else recorded) + push.to(result)

    return hook

"""Find the query, key, value and output projections of every head from activations, not names.

Random numbers are put in place of what every linear layer makes. Tokens that stand alone at
position 0 are not turned by a rotary embedding, so the projection of the queries is the layer whose
random output, cut into heads in one of the known ways, arrives at the attention; likewise for keys
and values, fused or not. The projection of the output is the one that takes the heads' outputs.
What fits nothing, such as the compressed keys of MLA, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headscope.kernels.api import Request
from headscope.kernels.errors import InvalidInput, NotApplicable, UnsupportedModel
from headscope.probes.attention.forward import Reader, run
from headscope.probes.attention.interface import AttentionCall

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

PARTS = ("q", "k", "v", "o")
WHAT = {"q": "queries", "k": "keys", "v": "values", "o": "head outputs"}
# What architectures call a norm between the projection and the rotation.
NORMS = {"q": ("q_norm", "q_layernorm"), "k": ("k_norm", "k_layernorm")}
TOKENS = 48


@dataclass(frozen=True)
class Projection:
    """The linear map of one layer's heads, as a slice of a module.

    Attributes
    ----------
    module
        The linear layer that holds the weights.
    rows
        Which of its outputs (of its inputs, for the output projection) belong to which head.
    gain
        Factor of each channel after the projection: the gain of a norm there, or a constant.
    normalised
        Whether a norm divides by the length of the vector as well, so that the map holds only up
        to a positive factor for each token.
    """

    module: nn.Module
    rows: Int[Tensor, "head size"]
    gain: Float[Tensor, "head size"]
    normalised: bool

    def apply(self, output: Float[Tensor, "... width"]) -> Float[Tensor, "... head size"]:
        """Split the output of the module into heads, with the gain, in float64."""
        return output[..., self.rows].double() * self.gain


@dataclass(frozen=True)
class Weights:
    """Projections of all layers, by layer and part; those without an attention map have none.

    A layer's weights are read when they are asked for.
    """

    projections: dict[tuple[int, str], Projection]

    def of(self, layer: int, part: str) -> Float[Tensor, "head _ _"]:
        """Return the weights of one layer, in float64 on the CPU.

        ``q``: (head, residual, size). ``k``, ``v``: (kv_head, residual, size). ``o``: (head, size,
        residual). A query is ``x @ q[head]`` plus its bias, where x is what enters the projection:
        the residual stream after its norm, whose gain is not part of the weights.
        """
        projection = self.projections[layer, part]
        weight = _matrix(projection.module)
        if part == "o":
            return weight[projection.rows].double()
        return (weight[:, projection.rows].double() * projection.gain).permute(1, 0, 2)

    @property
    def normalised(self) -> bool:
        """Whether queries or keys are divided by their length after their projection."""
        return any(projection.normalised for projection in self.projections.values())


def read(model: Model, parts: Sequence[str] = PARTS) -> Weights:
    """Find the projections of every head and check them against what flows through the model.

    ``parts`` says which: ``q``, ``k``, ``v`` and ``o`` (output).

    >>> from headscope.probes import load_model
    >>> weights = read(load_model("headscope/bundled"))
    >>> tuple(weights.of(0, "q").shape), tuple(weights.of(0, "k").shape)
    ((8, 256, 32), (4, 256, 32))
    """
    if model.reads != "tokens":
        raise NotApplicable(
            f"model: {model.architecture} reads {model.reads}; projections are found with tokens"
        )
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise InvalidInput(f"parts: no {unknown[0]!r}; choose from {', '.join(PARTS)}")
    flow: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    calls: dict[int, AttentionCall] = {}
    head_outputs: dict[int, Tensor] = {}

    generator = torch.Generator().manual_seed(0)

    def swap(module: nn.Module, args: Any, result: Tensor) -> Tensor:
        drawn = torch.randn(result.shape, generator=generator).to(result)
        flow[module] = (args[0].detach(), drawn)
        return drawn

    def take(call: AttentionCall, outputs: dict[str, Tensor], z: Tensor) -> None:
        calls[call.layer], head_outputs[call.layer] = call, z

    with torch.no_grad(), ExitStack() as stack:
        for module in filter(_linear, model.module.modules()):
            stack.enter_context(module.register_forward_hook(swap))
        run(model, _tokens(model), Reader(Request(stats=()), take=take), head=False)
    layer_of = {id(call.module): layer for layer, call in calls.items()}
    projections = {}
    for layer, call in sorted(calls.items()):
        near = [module for module in _block(model, call.module, layer_of) if module in flow]
        arrived = {"q": call.query, "k": call.key, "v": call.value, "o": head_outputs[layer]}
        for part in parts:
            target = arrived[part].transpose(1, 2).flatten(0, 1).double().cpu()
            fits = [
                fit
                for module in near
                for fit in _fits(module, *flow[module], target, part, call.module, model.dtype)
            ]
            if not fits:
                raise UnsupportedModel(
                    f"model: no linear layer of layer {layer} gives the {WHAT[part]} of "
                    f"{model.name} ({model.architecture}) in a way that is known, so its weights "
                    "cannot be read"
                )
            # There is one at most, since its numbers are random.
            projections[layer, part] = fits[0]
    return Weights(projections)


def _block(model: Model, attention: nn.Module, layer_of: dict[int, int]) -> list[nn.Module]:
    """List what lies around an attention module and around no other one."""
    for group in model.module.modules():
        # From the outside inwards: the first that holds this attention alone.
        inside = list(group.modules())
        attentions = [part for part in inside if id(part) in layer_of]
        if attentions == [attention]:
            return inside
    return [attention]


def _tokens(model: Model) -> Int[Tensor, "token 1"]:
    """Return single tokens, each at position 0 of a text of its own."""
    count = min(TOKENS, model.vocabulary)
    return ((7 * torch.arange(count) + 3) % model.vocabulary)[:, None]


def _fits(
    module: nn.Module,
    entered: Tensor,
    result: Tensor,
    target: Float[Tensor, "token head size"],
    part: str,
    attention: nn.Module,
    dtype: torch.dtype,
) -> Iterator[Projection]:
    """Yield the cuts of a module that make (for ``o``: take) what arrived at the attention."""
    tolerance = 3e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-4
    vectors = (entered if part == "o" else result).flatten(0, -2).double().cpu()
    if len(vectors) != len(target):
        return
    for rows in _cuts(vectors.shape[1], target.shape[1], target.shape[2], part):
        for gain in _gains(attention, part, target):
            fit = _fit(vectors[:, rows] * gain, target, tolerance)
            if fit is not None:
                factor, normalised = fit
                yield Projection(module, rows, gain * factor, normalised)
                break


def _cuts(width: int, heads: int, size: int, part: str) -> Iterator[Tensor]:
    """Yield the known ways to cut the output of a projection into heads."""
    inside = torch.arange(heads * size).reshape(heads, size)
    if width % size:
        return
    if part == "o":
        if width == heads * size:
            yield inside
        return
    # One after the other: queries | keys | values, or alone.
    for start in range(0, width - heads * size + 1, size):
        yield inside + start
    # Side by side within every head, as in GPT-NeoX: [query key value] of head 0, of head 1, ...
    together = width // (heads * size)
    if width == together * heads * size:
        for index in range(together if together > 1 else 0):
            starts = (torch.arange(heads) * together + index) * size
            yield starts[:, None] + torch.arange(size)


def _gains(attention: nn.Module, part: str, target: Tensor) -> list[Tensor]:
    """List what may multiply the channels: nothing, or the gain of a norm of a known name."""
    shape = target.shape[1:]
    gains = [torch.ones(shape, dtype=torch.float64)]
    for name in NORMS.get(part, ()):
        norm = getattr(attention, name, None)
        norm = getattr(norm, "original_component", norm)
        weight = getattr(norm, "weight", None)
        if norm is None or weight is None:
            continue
        # A vector of ones has the length that a norm divides by: what comes out is the gain.
        ones = torch.ones(1, len(weight), dtype=weight.dtype, device=weight.device)
        with torch.no_grad():
            gain = norm(ones).flatten().double().cpu()
        if gain.numel() in (shape[1], shape.numel()):
            gains.append(gain.expand(shape) if gain.numel() == shape[1] else gain.reshape(shape))
    return gains


def _fit(
    vectors: Float[Tensor, "token head size"],
    target: Float[Tensor, "token head size"],
    tolerance: float,
) -> tuple[float, bool] | None:
    """Return by which factor the two agree, and whether it differs from token to token.

    None where they do not agree up to a positive factor.
    """
    scale = float(target.abs().max())
    if float((vectors - target).abs().max()) <= tolerance * max(scale, 1e-30):
        return 1.0, False
    factors = (vectors * target).sum(-1) / vectors.square().sum(-1).clamp_min(1e-300)
    gap = (vectors * factors[..., None] - target).norm(dim=-1)
    if bool((gap > tolerance * target.norm(dim=-1)).any()) or bool((factors <= 0).any()):
        return None
    common = float(factors.median())
    if float((factors / common - 1).abs().max()) <= tolerance:
        return common, False
    return 1.0, True


def _linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _matrix(module: Any) -> Float[Tensor, "input output"]:
    """Return the weight as (input, output); GPT-2's Conv1D stores it that way, Linear does not."""
    weight: Tensor = module.weight.detach().cpu()
    return weight if type(module).__name__ == "Conv1D" else weight.T

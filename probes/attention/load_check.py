"""Check at load time that intercepted attention agrees with the model's own eager attention."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headscope.kernels.api import Request
from headscope.kernels.errors import HeadscopeError, InvalidInput, UnsupportedModel
from headscope.probes.attention.forward import PLAIN, Reader, call, paired, run
from headscope.probes.attention.implementation import using
from headscope.probes.attention.interface import (
    NAME,
    AttentionCall,
    follows,
    intercept_attention,
    own_implementation,
)
from headscope.probes.interventions.base import Edit
from headscope.probes.models import vision
from headscope.probes.models.bridge import unwrapped
from headscope.probes.models.devices import weights
from headscope.probes.models.encoder_decoder import SELF, blocks, maps
from headscope.probes.models.model import Geometry, Model
from headscope.probes.models.pair import Pair

if TYPE_CHECKING:
    from headscope.probes.models.pair import Ids

STATISTICS = ("max_weight", "first_mass", "received")
LENGTH = 24


class _Silence(Edit):
    """An edit that removes every head."""

    def apply(self, layer: int, z: Tensor) -> Tensor:
        return torch.zeros_like(z)


@torch.no_grad()
def inspect(model: Model) -> Model:
    """Measure a model's geometry, and refuse it where our reading and its own disagree.

    A short prompt runs through headscope and through the model's own attention. Compared are the
    output, and for every head entropy, largest weight, mass on the first key and received mass
    (recomputed in float64 from the weights that the eager attention returns); then all heads
    are removed, which must change the output.
    """
    _refuse_unfit(model)
    ids = prompt(model)
    calls: list[AttentionCall] = []
    statistics: dict[int, dict[str, Tensor]] = {}

    def take(layer_call: AttentionCall, outputs: dict[str, Tensor], z: Tensor) -> None:
        calls.append(layer_call)
        statistics[layer_call.layer] = {name: outputs[name][0].double().cpu() for name in names}

    model = replace(model, geometry=_geometry(model, ids))
    names = compared(model)
    output = run(model, ids, Reader(Request(stats=names), take=take), head=False)
    if isinstance(ids, Tensor) and model.reads == "images":
        vision.check(model, ids, calls[0].query.shape[2])
    expected, weights = _eager(model, ids, calls)
    halves = (torch.float16, torch.bfloat16)
    half = any(weight.dtype in halves for weight in model.module.parameters())
    tolerance = 5e-2 if half else 1e-4
    _compare_implementations(model, ids, expected, tolerance)
    _compare_bridge(model, ids, tolerance)
    _compare_output(model, output, expected, tolerance)
    for layer_call, own_weights in zip(calls, weights, strict=True):
        _compare_statistics(model, layer_call, statistics[layer_call.layer], own_weights, tolerance)
    silent = run(model, ids, Reader(Request(stats=()), edits=(_Silence(),)), head=False)
    if torch.equal(silent, output):
        raise UnsupportedModel(
            f"model: removing every head of {model.name} changes nothing; refused"
        )
    return model


def compared(model: Model) -> tuple[str, ...]:
    """Return the statistics to compare: rows of sigmoid attention have no entropy."""
    return STATISTICS if model.geometry.sigmoid else ("entropy", *STATISTICS)


def _refuse_unfit(model: Model) -> None:
    if hasattr(model.module, "text_model") and hasattr(model.module, "vision_model"):
        raise UnsupportedModel(
            f"model: {model.architecture} holds two models, of texts and of images; give one of "
            "them (model.text_model, model.vision_model)"
        )
    if model.reads == "tokens" and not hasattr(model.module.config.get_text_config(), "vocab_size"):
        raise UnsupportedModel(f"model: {model.architecture} names no vocabulary; refused")
    if model.bridge is not None and model.attention != SELF:
        raise UnsupportedModel(
            "model: a TransformerBridge around an encoder and a decoder is not read; give the "
            "Hugging Face model in it (bridge.original_model)"
        )
    input_name = getattr(model.module, "main_input_name", "input_ids")
    if model.attention != SELF and input_name != "input_ids":
        raise UnsupportedModel(
            f"model: the encoder of {model.architecture} reads {input_name}, not tokens"
        )
    if getattr(model.module.config, "attention_type", None) == "block_sparse":
        # BigBird turns itself into another model at the first short text, such as ours.
        raise UnsupportedModel(
            f"attention_type: {model.architecture} attends to blocks, which is not known; load it "
            "with attention_type='original_full'"
        )
    for name, weight in weights(model.module):
        if not bool(torch.isfinite(weight).all()):
            raise InvalidInput(f"model: weight {name} of {model.name} holds NaN or infinity")


def prompt(model: Model) -> Ids:
    """Make a short prompt, longer than a short window; or an image."""
    if model.reads == "images":
        return vision.sample(model).to(model.device)
    config = model.module.config.get_text_config()
    length = LENGTH
    window = getattr(config, "sliding_window", None) or getattr(config, "window_size", None)
    if window and window <= 64:
        length = max(length, window + 8)  # so that a short window is seen to cut
    length = min(length, model.context or length)
    steps = torch.arange(length, device=model.device)
    ids = ((7 * steps + 3) % model.vocabulary)[None]
    # Of other tokens and shorter, so that source and target cannot be taken for each other.
    return ids if model.attention == SELF else Pair(ids, ids.flip(1)[:, : max(1, 2 * length // 3)])


def _geometry(model: Model, ids: Ids) -> Geometry:
    shapes: dict[int, Geometry] = {}
    causal: list[bool] = []
    sigmoid: list[bool] = []
    crossed = model.attention == "cross"

    def measure(layer_call: AttentionCall) -> Tensor:
        heads, size = layer_call.query.shape[1], layer_call.query.shape[3]
        kv_heads, value_size = layer_call.value.shape[1], layer_call.value.shape[3]
        if layer_call.layer in shapes:
            raise UnsupportedModel(
                f"model: layer {layer_call.layer} of {model.name} asks for attention twice"
            )
        causal.append(layer_call.causal)
        sigmoid.append(layer_call.sigmoid)
        shapes[layer_call.layer] = Geometry(0, heads, kv_heads, size, value_size, crossed=crossed)
        return layer_call.query.new_zeros(*layer_call.query.shape[:3], value_size)

    try:
        with intercept_attention(model, measure):
            call(model, ids, head=False)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        # Code outside the interface may ask a mask or scores for anything.
        followed = follows(model.module) and own_implementation(model.module) is None
        if isinstance(error, HeadscopeError) or followed:
            raise
        raise UnsupportedModel(
            f"model: {model.architecture} is outside transformers' AttentionInterface and cannot "
            f"be followed ({str(error).partition(chr(10))[0]}); this model is refused"
        ) from error
    layers = sorted(shapes)
    if not layers:
        raise UnsupportedModel(f"model: no layer of {model.name} asked for attention; refused")
    if model.attention == SELF:
        config = model.module.config.get_text_config()
        total = int(getattr(config, "num_hidden_layers", len(layers)))
    else:
        total = len(blocks(model.module, model.attention))
    if not set(layers) <= set(range(total)):
        raise UnsupportedModel(
            f"model: layers {layers} of {model.name} asked for attention, "
            f"but it says that it has {total}; refused"
        )
    if len(set(shapes.values())) != 1:
        raise UnsupportedModel(
            f"model: the layers of {model.name} differ in heads or sizes; refused"
        )
    without = tuple(layer for layer in range(total) if layer not in shapes)
    if without and not follows(model.module):
        # Steps that were not noticed look the same as a layer of another kind.
        raise UnsupportedModel(
            f"model: layers {list(without)} of {model.name} do no attention that can be followed; "
            "this model is refused"
        )
    return replace(
        shapes[layers[0]], layers=total, without=without, causal=all(causal), sigmoid=any(sigmoid)
    )


def _eager(model: Model, ids: Ids, calls: list[AttentionCall]) -> tuple[Tensor, list[Tensor]]:
    """Run the model's own eager attention and keep the weights that each layer returns."""
    if model.attention != SELF:
        # Its own lists, which say what is an encoder's, a decoder's and across the two.
        pair = paired(model, ids)
        with using(model.module, "eager"):
            listed = maps(model, pair.source, pair.target, PLAIN)
            hidden = call(model, ids, head=False)
        return hidden, [listed[layer_call.layer][0].double().cpu() for layer_call in calls]
    parts = [layer_call.module for layer_call in calls]
    weights: dict[int, Tensor] = {}

    def keep(part: nn.Module, args: Any, result: Any) -> None:
        maps = [value for value in result[1:] if isinstance(value, Tensor) and value.ndim == 4]
        if len(maps) == 1:
            weights[id(part)] = maps[0][0].double().cpu()

    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(part.register_forward_hook(keep))
        implementation = own_implementation(model.module) or "eager"
        hidden = _last_hidden_state(model, ids, implementation)
        if not weights and not follows(model.module):
            # Older code makes weights only where they are asked for. Not at first: to ask newer
            # code leaves hooks of transformers' own behind.
            hidden = _last_hidden_state(model, ids, "eager", output_attentions=True)
    for part in parts:
        if id(part) not in weights:
            raise UnsupportedModel(
                f"model: {type(part).__name__} returns no weights to check against"
            )
    return hidden, [weights[id(part)] for part in parts]


def _last_hidden_state(model: Model, ids: Ids, implementation: str, **options: Any) -> Tensor:
    """Run the model's own attention: the last hidden state."""
    with ExitStack() as stack:
        if model.bridge is not None:
            stack.enter_context(unwrapped(model.bridge))
        stack.enter_context(using(model.module, implementation))
        if not options:
            return call(model, ids, head=False)
        result = model.base(input_ids=ids, **{**PLAIN, **options})
        hidden: Tensor = result.last_hidden_state
    return hidden


def _compare_implementations(model: Model, ids: Ids, eager: Tensor, tolerance: float) -> None:
    """Refuse a model whose attentions are two: outside the interface, each has its own code."""
    implementation = model.module.config._attn_implementation
    if follows(model.module) or implementation == "eager":
        return
    gap = float(
        (_last_hidden_state(model, ids, implementation).double() - eager.double()).abs().max()
    )
    if gap > tolerance * max(1.0, float(eager.double().abs().max())):
        raise UnsupportedModel(
            f"model: the {implementation} and the eager attention of {model.name} differ by "
            f"{gap:.2g}, so there is no one reading; load it with attn_implementation='eager' to "
            "read that"
        )


def _compare_bridge(model: Model, ids: Ids, tolerance: float) -> None:
    """Refuse a bridge whose own attention has other weights than the model inside it."""
    module: Any = model.module
    if model.bridge is None or module.get_output_embeddings() is None:
        return
    own = call(model, ids, head=True).double()
    with intercept_attention(model, Reader(Request(stats=()))):
        gap = float((call(model, ids, head=True).double() - own).abs().max())
    if gap > tolerance * max(1.0, float(own.abs().max())):
        raise UnsupportedModel(
            f"model: the logits of this TransformerBridge differ by {gap:.2g} from those with the "
            "attention of the Hugging Face model in it, as it has weights of its own that do not "
            "fit there (enable_compatibility_mode has processed them, or the model was changed "
            "later); boot it anew, with enable_compatibility_mode(no_processing=True) if with any"
        )


def _compare_output(model: Model, output: Tensor, expected: Tensor, tolerance: float) -> None:
    if not bool(torch.isfinite(expected).all()):
        raise InvalidInput(f"model: {model.name} gives NaN or infinite numbers; check its weights")
    gap = float((output.double() - expected.double()).abs().max())
    allowed = tolerance * max(1.0, float(expected.double().abs().max()))
    if gap > allowed:
        raise UnsupportedModel(
            f"model: through {NAME} the output of {model.name} differs from its eager attention "
            f"by {gap:.2g} (allowed {allowed:.2g}); this model is refused"
        )


def _compare_statistics(
    model: Model,
    layer_call: AttentionCall,
    statistics: dict[str, Tensor],
    weights: Tensor,
    tolerance: float,
) -> None:
    # Not weights > 0: a key that is seen may have a weight that rounds to zero.
    query, key = (torch.arange(size) for size in weights.shape[-2:])
    visible = torch.ones(weights.shape[-2:], dtype=torch.bool)
    if layer_call.causal:
        visible &= key[None, :] <= query[:, None]
    if layer_call.window is not None:
        visible &= key[None, :] > query[:, None] - layer_call.window
    # A learned sink is an outcome that eager attention does not return.
    sink = (1.0 - weights.sum(-1, keepdim=True)).clamp_min(0.0)
    shares = weights if layer_call.sinks is None else torch.cat((weights, sink), dim=-1)
    expected = {
        "entropy": -torch.xlogy(shares, shares).sum(-1),
        "max_weight": weights.max(-1).values,
        "first_mass": weights[..., 0],
        "received": weights.sum(-2) / visible.sum(-2),
    }
    for name in statistics:
        gap = (statistics[name] - expected[name]).abs().amax(-1)
        head = int(gap.argmax())
        if not float(gap[head]) <= tolerance * max(1.0, float(expected[name].abs().max())):
            raise UnsupportedModel(
                f"model: {name} of L{layer_call.layer}H{head} in {model.name} is "
                f"{float(gap[head]):.2g} away from the model's own eager attention; "
                "this model is refused"
            )

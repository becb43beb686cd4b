"""The check at load: what we read from a model against what the model itself computes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from headscope.kernels.refusal import Refused
from headscope.kernels.request import Request
from headscope.probes.edit import Edit
from headscope.probes.forward import PLAIN, Ids, Reader, call, paired, run
from headscope.probes.model import Geometry, Model
from headscope.probes.pair import Pair
from headscope.probes.seam import NAME, Call, installed, using
from headscope.probes.stacks import SELF, blocks, maps

STATISTICS = ("entropy", "max_weight", "first_mass", "received")
LENGTH = 24


class _Silence(Edit):
    """An edit that removes every head."""

    def apply(self, layer: int, z: Tensor) -> Tensor:
        return torch.zeros_like(z)


@torch.no_grad()
def inspect(model: Model) -> Model:
    """Measure a model's geometry and refuse it where our reading and its own disagree.

    A short prompt runs through the seam and through the model's own attention. Compared are the
    output, and for every head entropy, largest weight, mass on the first key and received mass
    (recomputed in float64 from the weights that the eager attention returns); then all heads
    are removed, which must change the output.

    Returns
    -------
    The model with its geometry.

    Raises
    ------
    Refused
        Naming layer, head and statistic.
    """
    _refuse_unfit(model)
    ids = _prompt(model)
    calls: list[Call] = []
    found: dict[int, dict[str, Tensor]] = {}

    def take(asked: Call, outputs: dict[str, Tensor], z: Tensor) -> None:
        calls.append(asked)
        found[asked.layer] = {name: outputs[name][0].double().cpu() for name in STATISTICS}

    model = replace(model, geometry=_geometry(model, ids))
    ours = run(model, ids, Reader(Request(stats=STATISTICS), take=take), head=False)
    own, weights = _eager(model, ids, calls)
    half = model.dtype in (torch.float16, torch.bfloat16)
    _compare_output(model, ours, own, 5e-2 if half else 1e-4)
    for asked, one in zip(calls, weights, strict=True):
        _compare_statistics(model, asked, found[asked.layer], one, 5e-2 if half else 1e-4)
    silent = run(model, ids, Reader(Request(stats=()), edits=(_Silence(),)), head=False)
    if torch.equal(silent, ours):
        raise Refused(f"model: removing every head of {model.name} changes nothing; refused")
    return model


def _refuse_unfit(model: Model) -> None:
    if not hasattr(model.module.config.get_text_config(), "vocab_size"):
        raise Refused(f"model: {model.architecture} reads no tokens; only text models are known")
    if model.bridge is not None and model.attention != SELF:
        raise Refused(
            "model: a TransformerBridge around an encoder and a decoder is not read; give the "
            "Hugging Face model in it (bridge.original_model)"
        )
    given = getattr(model.module, "main_input_name", "input_ids")
    if model.attention != SELF and given != "input_ids":
        raise Refused(f"model: the encoder of {model.architecture} reads {given}, not tokens")
    for name, weight in model.module.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise Refused(f"model: weight {name} of {model.name} holds NaN or infinity")


def _prompt(model: Model) -> Ids:
    config = model.module.config.get_text_config()
    length = LENGTH
    window = getattr(config, "sliding_window", None)
    if window and window <= 64:
        length = max(length, window + 8)  # so that a short window is seen to cut
    length = min(length, model.context or length)
    steps = torch.arange(length, device=model.device)
    ids = ((7 * steps + 3) % model.vocabulary)[None]
    # Of other tokens and shorter, so that source and target cannot be taken for each other.
    return ids if model.attention == SELF else Pair(ids, ids.flip(1)[:, : max(1, 2 * length // 3)])


def _geometry(model: Model, ids: Ids) -> Geometry:
    shapes: dict[int, Geometry] = {}
    crossed = model.attention == "cross"

    def measure(asked: Call) -> Tensor:
        heads, size = asked.query.shape[1], asked.query.shape[3]
        kv_heads, value_size = asked.value.shape[1], asked.value.shape[3]
        if asked.layer in shapes:
            raise Refused(f"model: layer {asked.layer} of {model.name} asks for attention twice")
        shapes[asked.layer] = Geometry(0, heads, kv_heads, size, value_size, crossed=crossed)
        return asked.query.new_zeros(*asked.query.shape[:3], value_size)

    if not _follows_the_interface(model):
        raise Refused(
            f"model: {model.architecture} does not follow transformers' AttentionInterface, so "
            "its attention cannot be read; this architecture is refused"
        )
    with installed(model, measure):
        call(model, ids, head=False)
    layers = sorted(shapes)
    if not layers:
        raise Refused(f"model: no layer of {model.name} asked for attention; refused")
    if model.attention == SELF:
        config = model.module.config.get_text_config()
        total = int(getattr(config, "num_hidden_layers", len(layers)))
    else:
        total = len(blocks(model.module, model.attention))
    if not set(layers) <= set(range(total)):
        raise Refused(
            f"model: layers {layers} of {model.name} asked for attention, "
            f"but it says that it has {total}; refused"
        )
    if len(set(shapes.values())) != 1:
        raise Refused(f"model: the layers of {model.name} differ in heads or sizes; refused")
    without = tuple(layer for layer in range(total) if layer not in shapes)
    return replace(shapes[layers[0]], layers=total, without=without)


def _follows_the_interface(model: Model) -> bool:
    # The bridge replaces the attention modules, so only the class of the model itself is asked.
    return bool(type(model.module)._can_set_attn_implementation())


def _eager(model: Model, ids: Ids, calls: list[Call]) -> tuple[Tensor, list[Tensor]]:
    """Run the model's own eager attention and keep the weights that each layer returns."""
    if model.attention != SELF:
        # Its own lists, which say what is an encoder's, a decoder's and across the two.
        pair = paired(model, ids)
        with using(model.module, "eager"):
            listed = maps(model, pair.source, pair.target, PLAIN)
            own = call(model, ids, head=False)
        return own, [listed[asked.layer][0].double().cpu() for asked in calls]
    parts = [asked.module for asked in calls]
    weights: dict[int, Tensor] = {}

    def keep(part: nn.Module, given: Any, result: Any) -> None:
        maps = [one for one in result[1:] if isinstance(one, Tensor) and one.ndim == 4]
        if len(maps) != 1:
            raise Refused(f"model: {type(part).__name__} returns no weights to check against")
        weights[id(part)] = maps[0][0].double().cpu()

    handles = [part.register_forward_hook(keep) for part in parts]
    try:
        if model.bridge is not None:
            from headscope.probes.bridge import unwrapped

            with unwrapped(model.bridge), using(model.module, "eager"):
                own = model.module.base_model(input_ids=ids, **PLAIN).last_hidden_state
        else:
            with using(model.module, "eager"):
                own = call(model, ids, head=False)
    finally:
        for handle in handles:
            handle.remove()
    return own, [weights[id(part)] for part in parts]


def _compare_output(model: Model, ours: Tensor, own: Tensor, tolerance: float) -> None:
    if not bool(torch.isfinite(own).all()):
        raise Refused(f"model: {model.name} gives NaN or infinite numbers; check its weights")
    gap = float((ours.double() - own.double()).abs().max())
    allowed = tolerance * max(1.0, float(own.double().abs().max()))
    if gap > allowed:
        raise Refused(
            f"model: through {NAME} the output of {model.name} differs from its eager attention "
            f"by {gap:.2g} (allowed {allowed:.2g}); this model is refused"
        )


def _compare_statistics(
    model: Model, asked: Call, found: dict[str, Tensor], weights: Tensor, tolerance: float
) -> None:
    # Not weights > 0: a key that is seen may have a weight that rounds to zero.
    query, key = (torch.arange(size) for size in weights.shape[-2:])
    seen = torch.ones(weights.shape[-2:], dtype=torch.bool)
    if asked.causal:
        seen &= key[None, :] <= query[:, None]
    if asked.window is not None:
        seen &= key[None, :] > query[:, None] - asked.window
    # A learned sink is an outcome that eager attention does not return.
    rest = (1.0 - weights.sum(-1, keepdim=True)).clamp_min(0.0)
    shares = weights if asked.sinks is None else torch.cat((weights, rest), dim=-1)
    expected = {
        "entropy": -(shares * shares.clamp_min(1e-300).log()).sum(-1),
        "max_weight": weights.max(-1).values,
        "first_mass": weights[..., 0],
        "received": weights.sum(-2) / seen.sum(-2),
    }
    for name in STATISTICS:
        gap = (found[name] - expected[name]).abs().amax(-1)
        head = int(gap.argmax())
        if not float(gap[head]) <= tolerance * max(1.0, float(expected[name].abs().max())):
            raise Refused(
                f"model: {name} of L{asked.layer}H{head} in {model.name} is {float(gap[head]):.2g} "
                "away from the model's own eager attention; this model is refused"
            )

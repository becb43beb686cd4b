"""What an encoder–decoder architecture can do, found out by trying, for each of its attentions."""

from typing import Any

import torch
from bridges import bridge_if_known
from torch import Tensor

from headscope.kernels.api import Request
from headscope.kernels.errors import HeadscopeError
from headscope.probes import Pair, capture, load_model
from headscope.probes.attention.forward import Reader, logits
from headscope.probes.attention.interface import AttentionCall, intercept_attention
from headscope.probes.interventions import Ablate, FixPattern, Gate, KnockOut
from headscope.probes.models.model import Model

KINDS = ("encoder", "decoder", "cross")
TOLERANCE = 5e-5
# Source and target, either one the longer, and a single token of each.
LENGTHS = ((9, 1), (1, 9), (33, 21), (7, 33))


def draw(length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(100 * seed + length)
    return torch.randint(3, 62, (2, length), generator=generator)


def close(actual: Tensor, expected: Tensor) -> None:
    given = actual.double(), expected.double()
    torch.testing.assert_close(*given, rtol=0, atol=TOLERANCE, equal_nan=True)


def entropy(weights: Tensor) -> Tensor:
    weights = weights.double()
    return -torch.xlogy(weights, weights).sum(-1)


def eager(module: Any, kind: str, pair: Pair, **masks: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Run a model's own eager attention: its logits, and the weights it lists for one kind."""
    before = module.config._attn_implementation
    module.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            given = {"input_ids": pair.source, "decoder_input_ids": pair.target, **masks}
            result = module(**given, output_attentions=True)
    finally:
        module.set_attn_implementation(before)
    return result.logits, list(result[f"{kind}_attentions"])


def given(model: Model, pair: Pair) -> list[Any]:
    """Name the prompts of a batch as a user gives them."""
    sources, targets = pair.source.tolist(), pair.target.tolist()
    if model.attention == "encoder":
        return list(sources)
    return [Pair(*source) for source in zip(sources, targets, strict=True)]


def try_capture(model: Model, module: Any) -> str:
    """Compare statistics and logits with eager attention at odd lengths."""
    for source, target in LENGTHS:
        pair = Pair(draw(source, 1), draw(target, 2))
        result = capture(model, given(model, pair), stats=("entropy", "received", "max_weight"))
        own, weights = eager(module, model.attention, pair)
        assert len(weights) == model.layers == (2 if model.attention == "encoder" else 3)
        for layer, weight in enumerate(weights):
            at = {"layer": layer}
            close(torch.from_numpy(result["entropy"].isel(at).values), entropy(weight))
            close(torch.from_numpy(result["max_weight"].isel(at).values), weight.amax(-1))
            seen = torch.full((weight.shape[-1],), weight.shape[-2])
            if model.attention == "decoder":
                seen = weight.shape[-1] - torch.arange(weight.shape[-1])
            close(torch.from_numpy(result["received"].isel(at).values), weight.sum(-2) / seen)
        with torch.no_grad():
            close(logits(model, pair), own)
    kept = capture(model, given(model, pair), stats=("lse",), keep=("q", "k"))
    return "N×N bias" if "position_bias" in kept.coords else ""


def through(model: Model, **inputs: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    """Run padded prompts through the seam: the output, and every layer's entropy."""
    result: dict[int, Tensor] = {}

    def take(call: AttentionCall, outputs: dict[str, Tensor], z: Tensor) -> None:
        result[call.layer] = outputs["entropy"]

    reader = Reader(Request(stats=("entropy",)), take=take)
    with torch.no_grad(), intercept_attention(model, reader):
        output = model.module(**inputs)[0]
    return output, result


def try_padding(model: Model, module: Any) -> str:
    """Compare padded sources, and padded targets, with eager attention at real tokens.

    Both have as many tokens, so that a mask taken for the other's would show.
    """
    pair = Pair(draw(21, 3), draw(21, 4))
    for field in ("attention_mask", "decoder_attention_mask"):
        for kept in (torch.arange(21) >= 6, torch.arange(21) < 15):
            mask = torch.ones_like(pair.source)
            mask[0] = kept.long()
            ids = {"input_ids": pair.source, "decoder_input_ids": pair.target}
            output, result = through(model, **ids, **{field: mask})
            own, weights = eager(module, model.attention, pair, **{field: mask})
            every = torch.ones_like(mask).bool()
            targets = mask.bool() if field.startswith("decoder") else every
            sources = every if field.startswith("decoder") else mask.bool()
            close(output[targets], own[targets])
            real = sources if model.attention == "encoder" else targets
            for layer, weight in enumerate(weights):
                close(result[layer].transpose(1, 2)[real], entropy(weight).transpose(1, 2)[real])
                if model.attention != "cross":
                    assert result[layer].transpose(1, 2)[~real].isnan().all()
    return "left, right"


def try_gradients(model: Model, module: Any) -> str:
    """Compare the gradient of a gate with a finite difference."""
    pair = Pair(draw(9, 5)[:1], draw(5, 6)[:1])
    with torch.no_grad():
        shape = logits(model, pair).shape
    direction = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def score(values: Tensor) -> Tensor:
        return (logits(model, pair, (Gate(values),)).double() * direction).sum()

    gates = torch.ones(model.layers, model.heads, requires_grad=True)
    (gradient,) = torch.autograd.grad(score(gates), gates)
    for layer in range(model.layers):
        step = torch.zeros_like(gates)
        step[layer, 1] = 2e-3  # short: the ReLU of T5 has kinks on the way of a longer one
        with torch.no_grad():
            slope = (score(gates + step) - score(gates - step)) / 4e-3
        torch.testing.assert_close(gradient[layer, 1].double(), slope, rtol=5e-3, atol=3e-3)
    assert gradient.abs().min() > 0
    return "yes"


def try_edits(model: Model, module: Any) -> str:
    """Fix a head to its own pattern, which changes nothing; knock a key out; ablate one head."""
    pair = Pair(draw(9, 7)[:1], draw(5, 8)[:1])
    with torch.no_grad():
        plain = logits(model, pair)
        own = capture(model, given(model, pair), stats=("pattern",))["pattern"].values[0, 1, 2]
        close(torch.from_numpy(own), eager(module, model.attention, pair)[1][1][0, 2])
        close(logits(model, pair, (FixPattern((1, 2), torch.from_numpy(own.copy())),)), plain)
        gone = logits(model, pair, (KnockOut(heads=((1, 2),), keys=(1,)),))
        hidden = own.copy()
        hidden[:, 1] = 0.0
        hidden /= hidden.sum(-1, keepdims=True)
        close(gone, logits(model, pair, (FixPattern((1, 2), torch.from_numpy(hidden)),)))
        without = logits(model, pair, (Ablate(heads=((1, 2),)),))
        expected = ablated(model, module, pair, layer=1, head=2)
    assert (gone - plain).abs().max() > 1e-4
    close(without, expected)
    return "yes"


def ablated(model: Model, module: Any, pair: Pair, *, layer: int, head: int) -> Tensor:
    """Remove a head by hand: zeros where the output projection of one attention reads it."""
    cross = {"t5": "EncDecAttention", "bart": "encoder_attn"}
    own = {"t5": "SelfAttention", "bart": "self_attn"}
    style = "t5" if hasattr(module, "shared") and hasattr(module.encoder, "block") else "bart"
    name = (cross if model.attention == "cross" else own)[style]
    stack = module.get_encoder() if model.attention == "encoder" else module.get_decoder()
    parts = [part for path, part in stack.named_modules() if path.endswith(name)]
    out = parts[layer].o if style == "t5" else parts[layer].out_proj
    size = model.head_size

    def silence(part: Any, args: Any) -> Any:
        mixed = args[0].clone()
        mixed[..., head * size : (head + 1) * size] = 0.0
        return (mixed, *args[1:])

    handle = out.register_forward_pre_hook(silence)
    try:
        return eager(module, model.attention, pair)[0]
    finally:
        handle.remove()


def try_bridge(module: Any, words: Any) -> str:
    """Boot a TransformerBridge around a model with stacks of one depth, which is refused."""
    bridge = bridge_if_known(module, words)
    if bridge is None:
        return "no: TransformerLens does not know it"
    try:
        load_model(bridge, attention="cross")
    except HeadscopeError as refusal:
        return f"refused: {str(refusal).removeprefix('model: ').partition(';')[0]}"
    raise AssertionError("a bridge around an encoder and a decoder is read: compare its numbers")


def trial(module: Any, even: Any, words: Any) -> dict[str, str]:
    """Try everything with each attention of one architecture; the cells of its row.

    ``even`` is a model of the architecture whose stacks have one depth, for TransformerLens.
    """
    cells: dict[str, str] = {}
    notes = {}
    for kind in KINDS:
        model = load_model(module, attention=kind)
        notes[kind] = try_capture(model, module)
        trials = {"padding": try_padding, "gradients": try_gradients, "edits": try_edits}
        result = {name: each(model, module) for name, each in trials.items()}
        assert not cells or result == cells, kind
        cells = result
    output = ", ".join(f"{kind} ({note})" if note else kind for kind, note in notes.items())
    return {"capture": output, **cells, "TransformerBridge": try_bridge(even, words)}

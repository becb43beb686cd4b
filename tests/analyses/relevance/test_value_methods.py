"""Attention weighed by what the values carry: against passes with the values taken away."""

import architectures
import numpy as np
import pytest
import torch
from constructed import repeated
from refusals import check_message

from headscope.analyses._interventions.ablation import encode_task
from headscope.analyses._relevance import norm_attention, target, value_zeroing
from headscope.analyses._relevance.trace import Trace
from headscope.probes import load_model

IDS = [(7 * at + 3) % 60 + 2 for at in range(20)]


def traced(family, **more):
    model = load_model(architectures.build(family, **more))
    return Trace(model, target.predicted(model, IDS))


def after_attention(module, layer, token=None):
    """The stream after a Llama's attention, the values of one token taken away in that layer."""
    block, seen = module.model.layers[layer], {}

    def zero(part, args, result):
        if token is None:
            return result
        changed = result.clone()
        changed[:, token] = 0.0
        return changed

    hooks = [
        block.self_attn.v_proj.register_forward_hook(zero),
        block.post_attention_layernorm.register_forward_pre_hook(
            lambda part, args: seen.update(stream=args[0][0].double())
        ),
    ]
    try:
        with torch.no_grad():
            module(input_ids=torch.tensor([IDS]))
    finally:
        for hook in hooks:
            hook.remove()
    return seen["stream"]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gpt_oss"])
def test_value_zeroing_is_what_passes_without_the_values_give(family):
    trace = traced(family)
    module = trace.model.module
    whole = np.eye(len(IDS))
    for layer in range(2):
        clean = after_attention(module, layer)
        turned = torch.stack(
            [1 - torch.cosine_similarity(clean, after_attention(module, layer, token), dim=-1)
             for token in range(len(IDS))], dim=1,
        ).numpy()  # fmt: skip
        whole = turned / turned.sum(1, keepdims=True) @ whole
    result = value_zeroing.relevance(trace)
    np.testing.assert_allclose(result, whole[-1], atol=1e-4)
    assert result.sum() == pytest.approx(1)


def test_value_zeroing_in_parts_is_the_same(monkeypatch):
    trace = traced("llama")
    expected = value_zeroing.relevance(trace)
    monkeypatch.setattr(value_zeroing, "CHUNK", 300)  # three queries at once
    np.testing.assert_allclose(value_zeroing.relevance(trace), expected, atol=1e-12)


def test_value_zeroing_refuses_a_norm_behind_the_heads():
    check_message("straight into the residual stream", value_zeroing.relevance, traced("gemma2"))
    check_message("no attention map", value_zeroing.relevance, traced("lfm2"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_oss"])
def test_norms_are_those_of_the_output_projection(family, monkeypatch):
    """The output projection of one token's share of the heads' outputs."""
    trace = traced(family)
    maps = architectures.eager_maps(trace.model.module, IDS)[..., : len(IDS)]
    expected = []
    for number, layer in trace.layers.items():
        call = layer.call
        module = getattr(call.module, "o_proj", None) or call.module.c_proj
        groups = layer.z.shape[1] // call.value.shape[1]
        value = call.value[0].repeat_interleave(groups, 0)
        shares = (maps[number, :, -1, :, None].float() * value).permute(1, 0, 2).flatten(1)
        with torch.no_grad():
            shift = module(torch.zeros_like(shares))
            expected.append((module(shares) - shift).norm(dim=-1).numpy())
    monkeypatch.setattr(norm_attention, "CHUNK", 2000)
    result = norm_attention.norms(trace)
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-5)
    shares = result / result.sum(1, keepdims=True)
    np.testing.assert_allclose(norm_attention.relevance(trace), shares.mean(0))


def test_norms_know_that_a_sink_carries_nothing(circuit):
    """L0H1 attends to the first token and writes nothing; the copy of L1H0 carries the answer."""
    task = encode_task(circuit, repeated(n=1, length=4))
    trace = Trace(circuit, target.of_task(task)[0])
    first, second = norm_attention.norms(trace)
    assert first[0] < 1e-6 * first.max()
    assert int(second.argmax()) == len(IDS) - 16

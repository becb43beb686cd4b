"""Projections and rotations read from models, against the tensors that transformers documents."""

import copy
from typing import Any

import architectures
import numpy as np
import pytest
import torch
from bridges import bridge_of
from refusals import check_refusal, refusal
from transformers import LlamaConfig, LlamaForCausalLM

from headscope.probes import capture, load_model
from headscope.probes.attention import projections, rotary

IDS = [[3, 9, 27, 14, 42, 60, 51, 25, 11, 33, 2, 7]]


def built(family: str) -> Any:
    """A model with biases and gains that are not their initial zeros and ones."""
    module = architectures.build(family)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.ndim == 1 and ("norm" in name or name.endswith("bias")):
                weight.add_(0.3 * torch.rand(weight.shape, generator=generator))
    return module


def linear(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """A Linear's weight (output, input) as (head, input, size)."""
    return weight.reshape(heads, -1, weight.shape[1]).transpose(1, 2)


def named(family: str, module: Any) -> dict[str, torch.Tensor]:
    """Projections of layer 1, cut by hand."""
    if family == "gpt2":
        attention = module.transformer.h[1].attn
        q, k, v = attention.c_attn.weight.chunk(3, dim=1)
        result = {"q": q.T, "k": k.T, "v": v.T, "o": attention.c_proj.weight.T}
    elif family == "gpt_neox":
        attention = module.gpt_neox.layers[1].attention
        q, k, v = attention.query_key_value.weight.reshape(4, 3, 8, 32).unbind(1)
        result = {"q": q.flatten(0, 1), "k": k.flatten(0, 1), "v": v.flatten(0, 1)}
        result["o"] = attention.dense.weight
    elif family == "bert":
        attention = module.bert.encoder.layer[1].attention
        own = attention.self
        result = {"q": own.query.weight, "k": own.key.weight, "v": own.value.weight}
        result["o"] = attention.output.dense.weight
    elif family == "phi3":
        attention = module.model.layers[1].self_attn
        q, k, v = attention.qkv_proj.weight.split((32, 16, 16))
        result = {"q": q, "k": k, "v": v, "o": attention.o_proj.weight}
    else:
        attention = module.model.layers[1].self_attn
        result = {name: getattr(attention, f"{name}_proj").weight for name in "qkvo"}
    cut = {name: linear(weight, len(weight) // 8) for name, weight in result.items() if name != "o"}
    cut["o"] = result["o"].T.reshape(4, 8, 32)
    if family == "qwen3":
        cut["q"] = cut["q"] * attention.q_norm.weight
        cut["k"] = cut["k"] * attention.k_norm.weight
    return cut


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "bert", "phi3", "llama", "qwen2", "qwen3"])
def test_every_projection_is_the_named_one(family):
    module = built(family)
    result = projections.read(load_model(module))
    assert result.normalised == (family == "qwen3")
    for part, expected in named(family, module).items():
        got = result.of(1, part)
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, expected.detach().double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["olmo2", "gemma3_text", "gpt_oss", "opt", "distilbert", "lfm2"])
def test_other_families_give_the_directions_that_arrive(family):
    # What enters the projection, by a hook of the test; position 0 is not turned.
    model = load_model(built(family))
    result = projections.read(model)
    layer = model.geometry.attending[0]
    entered = {}
    handles = [
        result.projections[layer, part].module.register_forward_pre_hook(
            lambda module, given, part=part: entered.__setitem__(part, given[0][0, 0].double())
        )
        for part in "qkv"
    ]
    cap = capture(model, IDS, stats=(), keep=("q", "k", "v")).isel(prompt=0, layer=layer)
    for handle in handles:
        handle.remove()
    for part in "qkv":
        one = result.projections[layer, part]
        bias = torch.zeros(1) if one.module.bias is None else one.module.bias[one.rows]
        made = torch.einsum("r,hrs->hs", entered[part], result.of(layer, part))
        made = made + bias.detach() * one.gain
        arrived = torch.from_numpy(cap[part].values[:, 0]).double()
        cosine = torch.nn.functional.cosine_similarity(made, arrived, dim=-1)
        torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-5)
        if not one.normalised:
            torch.testing.assert_close(made, arrived, rtol=1e-4, atol=1e-5)


def test_compressed_keys_are_refused():
    model = load_model(architectures.build("deepseek_v3"))
    assert "no linear layer of layer 0 gives the queries" in str(refusal(projections.read, model))


def test_a_gated_output_is_refused():
    model = load_model(architectures.build("qwen3_next"))
    assert "gives the head outputs" in str(refusal(projections.read, model, ("o",)))


def test_weights_that_make_nothing_on_any_token_are_read_too():
    module = architectures.build("llama")
    attention = module.model.layers[0].self_attn
    with torch.no_grad():
        module.model.embed_tokens.weight[:, 0] = 0
        attention.k_proj.weight[:, 1:] = 0
        attention.v_proj.weight[:, 1:] = 0
    result = projections.read(load_model(module), ("k", "v"))
    for part in ("k", "v"):
        expected = linear(getattr(attention, f"{part}_proj").weight, 2).detach().double()
        torch.testing.assert_close(result.of(0, part), expected)


def test_an_unknown_part_is_refused(bundled):
    check_refusal("parts", projections.read, bundled, ("query",))


@pytest.mark.filterwarnings("ignore")  # TransformerLens warns about its own dependencies
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_bridge_has_the_weights_of_its_model(family, words):
    module = built(family)
    bridge = bridge_of(copy.deepcopy(module), words)
    plain, wrapped = projections.read(load_model(module)), projections.read(load_model(bridge))
    for part in projections.PARTS:
        torch.testing.assert_close(wrapped.of(1, part), plain.of(1, part))


@pytest.mark.parametrize("family", ["llama", "phi", "gpt_neox", "qwen3", "gpt_oss"])
def test_turning_back_gives_what_stood_before_the_rotation(family):
    module = built(family)
    model = load_model(module)
    before: list[torch.Tensor] = []
    if family == "qwen3":
        part, cut = module.model.layers[1].self_attn.k_norm, lambda one: one[0].transpose(0, 1)
    elif family == "gpt_neox":
        part = module.gpt_neox.layers[1].attention.query_key_value
        cut = lambda one: one[0].reshape(-1, 4, 3, 8)[:, :, 1].transpose(0, 1)  # noqa: E731
    else:
        part = module.model.layers[1].self_attn.k_proj
        cut = lambda one: one[0].reshape(-1, 2, 8).transpose(0, 1)  # noqa: E731
    handle = part.register_forward_hook(lambda module, given, out: before.append(cut(out)))
    keys = capture(model, IDS, stats=(), keep=("k",))["k"].values[0, 1]
    handle.remove()
    result = rotary.read(model)[1]
    assert len(result.pairs) > 0
    assert np.abs(keys - before[-1].detach().numpy()).max() > 0.1
    undone = result.undo(keys)
    expected = before[-1].detach().numpy()
    if family == "gpt_oss":  # its rotation also scales
        undone, expected = (
            one / np.linalg.norm(one, axis=-1)[..., None] for one in (undone, expected)
        )
    np.testing.assert_allclose(undone, expected, atol=2e-5)
    np.testing.assert_allclose(result.apply(undone), result.apply(expected), atol=2e-5)


def test_models_without_a_rotation_have_no_pairs():
    result = rotary.read(load_model(architectures.build("gpt2")))
    assert [len(one.pairs) for one in result.values()] == [0, 0]


def test_the_product_of_turned_vectors_depends_on_the_distance_alone():
    result = rotary.Rotation(np.array([[0, 2], [1, 3]]), np.array([1.0, 0.1]))
    q, k = np.random.default_rng(0).normal(size=(2, 4))
    turned = result.apply(np.tile(q, (9, 1))) @ result.apply(np.tile(k, (9, 1))).T
    np.testing.assert_allclose(np.diagonal(turned, -3)[1:], turned[3, 0], rtol=1e-12)
    np.testing.assert_allclose(result.wavelengths, [2 * np.pi, 20 * np.pi])


def test_frequencies_that_change_with_the_length_are_refused_beyond_it():
    config = LlamaConfig(
        **architectures.SHAPE,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    )
    model = load_model(LlamaForCausalLM(config).eval())
    assert len(rotary.read(model, 64)[0].pairs) == 4
    check_refusal("rope_parameters", rotary.read, model, 65)

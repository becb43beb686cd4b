import numpy as np
import pytest
import torch
import transformers
from constructed import WORDS, random_llama, silent_gpt2, tokenizer
from largest_tensor import LargestTensor

from headscope.analyses._relevance import _routes, method
from headscope.analyses._relevance.target import Target
from headscope.analyses._relevance.trace import Trace
from headscope.kernels.errors import NotApplicable
from headscope.probes import load_model

pytestmark = pytest.mark.requirement("C4")
TEXT = [0, 5, 6, 7, 5, 6]
SIZE = {"vocab_size": len(WORDS), "bos_token_id": 0, "eos_token_id": 0}
WIDE = {
    **SIZE, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 80,
}  # fmt: skip
FAMILIES = {
    "gpt2": {**SIZE, "n_positions": 80, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "qwen3": {**WIDE, "head_dim": 8, "num_key_value_heads": 2},
    "gpt_neox": WIDE,  # attention and MLP in parallel
    "granite": {**WIDE, "residual_multiplier": 0.5},
    "gemma2": {**WIDE, "head_dim": 8, "num_key_value_heads": 2},
}


def family(name):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name, **FAMILIES[name], attn_implementation="eager")
    module = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for part in module.parameters():
            if part.ndim == 1:
                part += 0.5 * torch.randn(part.shape)
    return load_model(module.eval(), tokenizer=tokenizer())


def shares(whole, parts):
    """The definition, part by part."""
    found = {}
    for name, part in parts.items():
        gain = np.abs(whole).sum() - np.abs(whole - part).sum()
        found[name] = max(1e-5, gain) if np.any(part) else 0.0
    total = sum(found.values())
    return {name: value / total for name, value in found.items()}


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "gemma2"])
def test_shares_are_those_of_the_definition(name):
    model = family(name)
    blocks = _routes.Blocks.of(model)
    streams = _routes.read(model, TEXT, blocks)
    assert blocks.parallel == (name == "gpt_neox")
    with torch.no_grad():
        output = model.module(
            torch.tensor([TEXT]), output_hidden_states=True, output_attentions=True
        )
    layer, row = 0, 5
    call = streams.calls[layer]
    before, after = (output.hidden_states[at][0, row].double().numpy() for at in (0, 1))
    maps = output.attentions[layer][0].double().numpy()
    values = call.value[0].double().numpy()
    outwards = blocks.outwards[layer].double().numpy()
    parts = {
        (head, key): maps[head, row, key] * values[head * len(values) // 4, key] @ outwards[head]
        for head in range(4)
        for key in range(row + 1)
    }
    added = streams.added[layer][row].double().numpy()
    bias = added - sum(parts.values())
    if name not in ("gpt2", "gpt_neox"):  # no biases: the heads alone are what attention adds
        np.testing.assert_allclose(bias, 0, atol=1e-5)
        bias = np.zeros_like(bias)
    mlp = after - before - added
    every = {**parts, "residual": before, "bias": bias}
    if blocks.parallel:
        expected = shares(after, {**every, "MLP": mlp})
    else:
        expected = shares(before + added, every)
        expected["MLP"] = shares(after, {"rest": before + added, "MLP": mlp})["MLP"]
    heads, own = _routes.layer_shares(streams, blocks, layer, torch.tensor([2, row]), 0.0)
    for (head, key), share in list(expected.items())[: 4 * (row + 1)]:
        assert float(heads[head, 1, key]) == pytest.approx(share, abs=1e-5)
    assert float(own[_routes.RESIDUAL][1]) == pytest.approx(expected["residual"], abs=1e-5)
    assert float(own[_routes.MLP][1]) == pytest.approx(expected["MLP"], abs=1e-5)
    # Masked keys have no floor.
    assert float(heads[:, 0, 3:].abs().max()) == 0


def test_importance_is_handed_down_whole(random_llama):
    text = list(range(5, 33))
    blocks = _routes.Blocks.of(random_llama)
    streams = _routes.read(random_llama, text, blocks)
    for threshold in (0.0, 0.01, 0.3):
        routes = _routes.trace(streams, blocks, 27, threshold)
        assert routes.tokens.sum() == pytest.approx(1)
        np.testing.assert_allclose(routes.heads.sum(1) + routes.residual, 1)
        for layer in range(2):
            through = [e for e in routes.edges if e[0] == layer and e[1] != _routes.MLP]
            assert sum(edge[-1] for edge in through) == pytest.approx(1)
    found = method("routes").relevance(Trace(random_llama, Target(tuple(text), 27, (5,))))
    np.testing.assert_allclose(found, _routes.trace(streams, blocks, 27, 0.01).tokens)


@torch.no_grad()
def test_a_planted_route_is_found():
    """L0H1 carries the first token to all places, L1H0 what it wrote; no other head writes."""
    module = silent_gpt2(n_positions=80, n_embd=64, n_layer=2, n_head=4)
    module.transformer.wte.weight[:, :35] = torch.eye(35)
    module.transformer.wpe.weight[0, 40] = 30.0
    for layer, head in ((0, 1), (1, 0)):
        part = module.transformer.h[layer].attn
        at = slice(16 * head, 16 * head + 16)
        # The key is the mark of the first place; the value is that too, and is written to 41.
        part.c_attn.bias[16 * head] = 50.0
        part.c_attn.weight[40, 64 + 16 * head] = 1.0
        part.c_attn.weight[40 + layer, 128 + 16 * head] = 20.0
        part.c_proj.weight[at, 41 + layer] = 1.0
    model = load_model(module, tokenizer=tokenizer())
    blocks = _routes.Blocks.of(model)
    routes = _routes.trace(_routes.read(model, TEXT, blocks), blocks, 5, 0.01)
    used = {(layer, head) for layer, head in np.argwhere(routes.heads > 0).tolist()}
    assert used == {(0, 1), (1, 0)}
    keys = {edge[2] for edge in routes.edges if edge[1] >= 0}
    assert keys == {0}
    assert routes.tokens[0] > 0.9
    assert routes.tokens[[1, 2, 3, 4]].max() == 0


def test_norms_after_the_attention_are_refused():
    with pytest.raises(NotApplicable, match="do not write straight into the residual stream"):
        _routes.Blocks.of(family("gemma2"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rollout", "routes"])
def test_32k_tokens_take_memory_linear_in_the_text(name):
    size = 32768
    trace = Trace(
        random_llama(places=size),
        Target(tuple(at % 30 for at in range(size)), size - 1, (5,)),
    )
    with LargestTensor() as largest:
        found = method(name).relevance(trace)
    assert found.sum() == pytest.approx(1, abs=1e-4)
    assert largest.elements < size**2 / 64

import copy
import os
import subprocess
import sys
from pathlib import Path

import constructed
import numpy as np
import pytest
import torch
import transformers
from constructed import WORDS, silent_gpt2, tokenizer

from headscope.analyses._relevance import _routes, method
from headscope.analyses._relevance.target import Target
from headscope.analyses._relevance.trace import Trace
from headscope.kernels.errors import NotApplicable
from headscope.probes import load_model

pytestmark = pytest.mark.requirement("C4")
SUPPORT = Path(constructed.__file__).parent
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
    result = {}
    for name, part in parts.items():
        gain = np.abs(whole).sum() - np.abs(whole - part).sum()
        result[name] = max(1e-5, gain) if np.any(part) else 0.0
    total = sum(result.values())
    return {name: value / total for name, value in result.items()}


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


class Dense:
    """Streams, maps, values and output weights of a model in float64, by transformers alone."""

    def __init__(self, name, model, ids):
        module = copy.deepcopy(model.module).double().eval()
        base = module.transformer if name == "gpt2" else module.base_model
        self.blocks = base.h if name == "gpt2" else base.layers
        made = {}
        for part in module.modules():
            part.register_forward_hook(lambda part, args, result: made.update({part: result}))
        with torch.no_grad():
            output = module(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)
        # The last hidden state has gone through the last norm.
        last = made[self.blocks[-1]]
        streams = [*output.hidden_states[:-1], last if torch.is_tensor(last) else last[0]]
        self.streams = [each[0].numpy() for each in streams]
        self.maps = [each[0].numpy() for each in output.attentions]
        self.factor = getattr(module.config, "residual_multiplier", 1.0)
        self.values, self.out, self.bias = [], [], []
        for block in self.blocks:
            if name == "gpt2":
                value = made[block.attn.c_attn][0].chunk(3, -1)[2].view(len(ids), 4, 8)
                last, out = block.attn.c_proj, block.attn.c_proj.weight
            elif name == "gpt_neox":
                fused = made[block.attention.query_key_value][0]
                value = fused.view(len(ids), 4, 24)[..., 16:]
                last, out = block.attention.dense, block.attention.dense.weight.T
            else:
                value = made[block.self_attn.v_proj][0].view(len(ids), -1, 8)
                value = value.repeat_interleave(4 // value.shape[1], 1)
                last, out = block.self_attn.o_proj, block.self_attn.o_proj.weight.T
            bias = torch.zeros(32) if last.bias is None else last.bias
            self.values.append(value.numpy())
            self.out.append(out.detach().reshape(4, 8, 32).numpy() * self.factor)
            self.bias.append(bias.detach().numpy() * self.factor)


def kept(parts, threshold):
    """Cut shares up to the threshold, but for the largest, and divide by what is left."""
    largest = max(parts.values())
    left = {key: it for key, it in parts.items() if it > threshold or it == largest}
    return {key: it / sum(left.values()) for key, it in left.items()}


def dense_trace(name, model, ids, at, threshold):
    """The whole graph by its definition, position by position, all in float64."""
    result = Dense(name, model, ids)
    importance = np.zeros(len(ids))
    importance[at] = 1.0
    heads, mlp, residual, bias = np.zeros((2, 4)), np.zeros(2), np.zeros(2), np.zeros(2)
    for layer in (1, 0):
        below = np.zeros(len(ids))
        for row in np.flatnonzero(importance):
            before, after = (result.streams[layer + up][row] for up in (0, 1))
            parts = {
                (head, key): result.maps[layer][head, row, key]
                * result.values[layer][key, head]
                @ result.out[layer][head]
                for head in range(4)
                for key in range(row + 1)
            }
            parts["bias"] = result.bias[layer]
            added = sum(parts.values())
            parts["residual"] = before
            through_mlp = after - before - added
            if name == "gpt_neox":
                got = kept(shares(after, {**parts, "MLP": through_mlp}), threshold)
            else:
                whole = before + added
                got = kept(shares(whole, parts), threshold)
                both = kept(shares(after, {"whole": whole, "MLP": through_mlp}), threshold)
                got["MLP"] = both.get("MLP", 0.0)
            for key, share in got.items():
                amount = importance[row] * share
                if key == "MLP":
                    mlp[layer] += amount
                    below[row] += amount if name == "gpt_neox" else 0
                elif key == "bias":
                    bias[layer] += amount
                elif key == "residual":
                    residual[layer] += amount
                    below[row] += amount
                else:
                    heads[layer, key[0]] += amount
                    below[key[1]] += amount
        importance = below
    return _routes.Routes([], importance, heads, mlp, residual, bias)


@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("name", ["gpt2", "qwen3", "gpt_neox", "granite"])
def test_the_whole_trace_is_that_of_the_definition_in_float64(name, threshold):
    model, text = family(name), list(range(5, 17))
    blocks = _routes.Blocks.of(model)
    result = _routes.trace(_routes.read(model, text, blocks), blocks, 11, threshold)
    expected = dense_trace(name, model, text, 11, threshold)
    for part in ("tokens", "heads", "mlp", "residual", "bias"):
        np.testing.assert_allclose(
            getattr(result, part), getattr(expected, part), atol=1e-5, err_msg=part
        )
    assert result.tokens.sum() + result.bias.sum() == pytest.approx(1, abs=1e-9)
    if threshold == 0:
        assert (result.bias.sum() > 1e-3) == (name in ("gpt2", "gpt_neox"))
        assert (result.tokens > 0).all()


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
    result = method("routes").relevance(Trace(random_llama, Target(tuple(text), 27, (5,))))
    np.testing.assert_allclose(result, _routes.trace(streams, blocks, 27, 0.01).tokens)


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


DEFINE = """
import gc
import torch
from constructed import random_llama
from headscope.analyses import rollout
from headscope.analyses._relevance import _routes, method
from headscope.analyses._relevance.target import Target
from headscope.analyses._relevance.trace import Trace
from headscope.kernels.api import memory
from headscope.probes import capture

torch.set_num_threads(1)
model = random_llama(positions=32768)
blocks = _routes.Blocks.of(model)

def run(size):
    ids = [at % 30 for at in range(size)]
    if {name!r} == "rollout.rows":
        held = capture(model, [ids], stats=(), keep=("q", "k"))
        return rollout.rows(held)["rollout"].sum()
    if {name!r} == "route graph":
        return _routes.trace(_routes.read(model, ids, blocks), blocks, size - 1, 0.01).tokens.sum()
    return method({name!r}).relevance(Trace(model, Target(tuple(ids), size - 1, (5,)))).sum()

run(64)
gc.collect()
memory.reset_peak()
before = memory.resident()
total = float(run({size}))
print(memory.peak() - before, total)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rollout", "routes", "rollout.rows", "route graph"])
def test_the_memory_of_32k_tokens_is_linear_in_the_text(name):
    """Peak memory over that of the model, each length in a process of its own."""
    peaks = []
    for size in (8192, 16384, 32768):
        program = DEFINE.format(name=name, size=size)
        done = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", "-c", program],
            capture_output=True, text=True, check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SUPPORT)},
        )  # fmt: skip
        peak, total = map(float, done.stdout.split())
        assert total == pytest.approx(1, abs=1e-4)
        peaks.append(peak)
    print(name, [f"{peak / 1e6:.0f} MB" for peak in peaks])  # noqa: T201
    # Twice the text, twice the memory: four times where it were its square.
    assert peaks[2] - peaks[1] < 2.5 * max(peaks[1] - peaks[0], 8e6)
    assert peaks[2] < 4 * 32768**2 / 8

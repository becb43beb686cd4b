import copy

import numpy as np
import pytest
import torch
from constructed import KEYS, WORDS
from refusals import refusal
from transformers import GPT2Config, GPT2LMHeadModel, PhiConfig, PhiForCausalLM

from headscope.analyses import frequencies
from headscope.probes import capture, load_model, pattern
from headscope.probes.prompts import tasks

KEEP = ("q", "k")


@pytest.fixture(scope="module")
def story(bundled):
    task = tasks.make("story", tokenizer=bundled.tokenizer, n=3, seed=3)
    return capture(bundled, task, stats=("lse",), keep=KEEP)


def small(layers: int = 1) -> dict[str, int]:
    return {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": layers,
        "num_attention_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0,
        "eos_token_id": 0,
    }  # fmt: skip


@pytest.mark.requirement("A18")
def test_the_terms_of_all_pairs_add_up_to_the_logits_and_the_shares_are_theirs(bundled, story):
    layer, head, group = 2, 5, 2
    selected = story.isel(prompt=0, layer=layer)
    length = int(selected["length"])
    q = selected["q"].values[head, :length].astype(float)
    k = selected["k"].values[group, :length].astype(float)
    # Llama turns channel c together with channel c + 16.
    pairs = [slice(c, None, 16) for c in range(16)]
    terms = np.stack([q[:, pair] @ k[:, pair].T / 32**0.5 for pair in pairs])
    weights = pattern(story, layer, head).values.astype(float)
    lse = selected["lse"].values[head, :length].astype(float)
    seen = np.tril(np.ones_like(weights)) > 0
    logits = np.log(weights.clip(1e-30)) + lse[:, None]
    likely = seen & (weights > 1e-6)
    np.testing.assert_allclose(terms.sum(0)[likely], logits[likely], atol=1e-3)

    numerator, denominator = np.zeros(16), 0.0
    for row in range(8, length):
        parts = terms[:, row, : row + 1]
        covariance = np.cov(np.concatenate([parts, parts.sum(0, keepdims=True)]), bias=True)
        numerator += covariance[:-1, -1]
        denominator += covariance[-1, -1]
    result = frequencies.run(story.isel(prompt=slice(1)), bundled, queries=1000)
    carried = result["carried"].values[:, layer, head]
    np.testing.assert_allclose(carried, numerator / denominator, atol=1e-6)
    bands = sum(result[name].values for name in ("high_frequency", "low_frequency", "unrotated"))
    np.testing.assert_allclose(bands, 1.0, atol=1e-9)
    high = 2 * np.pi * 10000 ** (np.arange(16) / 16) < length
    expected = (numerator / denominator)[high].sum()
    assert result["high_frequency"].values[layer, head] == pytest.approx(expected, abs=1e-6)


@pytest.mark.requirement("A18")
def test_a_head_planted_in_one_pair_is_carried_by_that_pair(rotary_sink):
    module = copy.deepcopy(rotary_sink.module)
    slow = rotary_sink.head_size // 2 - 1
    attention = module.model.layers[0].self_attn
    with torch.no_grad():
        # L0H1 compares its words through the pair that turns a radian a token.
        attention.q_proj.weight[16, :] = 2.0
        attention.k_proj.weight[0, :] = 1.0
        attention.o_proj.weight[:16, 16:] = torch.eye(16)
    model = load_model(module, tokenizer=rotary_sink.tokenizer)
    ids = [[0, *(WORDS.index(word) for word in np.roll(KEYS, turn))] * 2 for turn in range(16)]
    result = frequencies.run(capture(model, ids, stats=("lse",), keep=KEEP), model, edited=1)
    carried = result["carried"].values
    assert carried[slow, 0, 0] == pytest.approx(1.0)
    assert carried[0, 0, 1] == pytest.approx(1.0)
    assert result["low_frequency"].values.round(6).tolist() == [[1.0, 0.0]]
    assert result["wavelength"].values[0, 0] == pytest.approx(2 * np.pi)
    # Without its own band a head is uniform; without the other it is what it was.
    low_without_high, low_without_low, high_without_high, high_without_low = result["moved"].values
    assert low_without_high < 1e-9
    assert high_without_low < 1e-9
    assert low_without_low > 1e-6
    assert high_without_high > 1e-9
    assert result.attrs["verdict"] == "supported"


def test_a_head_whose_logits_are_all_alike_has_no_shares(rotary_sink):
    cap = capture(rotary_sink, [[0, *range(5, 15)]], stats=("lse",), keep=KEEP)
    result = frequencies.run(cap, rotary_sink, edited=1)
    assert np.isnan(result["carried"].values[:, 0, 1]).all()
    assert float(result["spread"].values[0, 1]) == 0.0


def test_channels_that_do_not_turn_have_their_part():
    torch.manual_seed(0)
    config = PhiConfig(**small(), partial_rotary_factor=0.5, initializer_range=0.5)
    model = load_model(PhiForCausalLM(config).eval())
    cap = capture(model, [list(range(1, 30))], stats=("lse",), keep=KEEP)
    result = frequencies.run(cap, model, edited=1)
    assert result.sizes["pair"] == 4
    rest = result["unrotated"].values
    assert (rest > 0.05).all()
    np.testing.assert_allclose(result["carried"].sum("pair").values + rest, 1.0, atol=1e-9)


def test_a_model_without_rotation_is_refused():
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=64)
    model = load_model(GPT2LMHeadModel(config).eval())
    cap = capture(model, [[1, 2, 3, 4]], stats=("lse",), keep=KEEP)
    assert "there are no rotary" in str(refusal(frequencies.run, cap, model))

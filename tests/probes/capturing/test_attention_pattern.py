"""A window of one head's pattern, recomputed, against the engine's whole pattern."""

import numpy as np
import pytest
import torch
from architectures import eager_maps
from refusals import check_refusal
from transformers import BloomConfig, BloomForCausalLM

from headscope.probes import capture, load_model, pattern

FAMILIES = ["llama", "gpt2", "mistral", "gemma2"]


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_equal_the_weights_of_eager_attention(family, tiny, ids, eager):
    module = tiny(family)
    prompts = [ids(9), ids(31, seed=1)]
    result = capture(load_model(module), prompts, stats=("lse",), keep=("q", "k"))
    for row, prompt in enumerate(prompts):
        weights, _, _ = eager(module, prompt)
        for layer in range(2):
            for head in range(4):
                one = pattern(result, layer, head, prompt=row)
                assert one.shape == (len(prompt), len(prompt))
                np.testing.assert_allclose(one, weights[layer][head], rtol=0, atol=5e-5)
    window = pattern(result, 1, 2, prompt=1, queries=slice(20, 25), keys=slice(3, None, 4))
    np.testing.assert_allclose(window, weights[1][2][20:25, 3::4], rtol=0, atol=5e-5)
    assert window["query"].values.tolist() == [20, 21, 22, 23, 24]
    assert window["key"].values.tolist() == [3, 7, 11, 15, 19, 23, 27]
    assert window["key_token"].values.tolist() == [str(prompts[1][at]) for at in range(3, 31, 4)]


def test_windows_have_the_slopes_of_alibi(ids):
    torch.manual_seed(0)
    config = BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=64, initializer_range=0.3)
    module = BloomForCausalLM(config).eval()
    module.set_attn_implementation("eager")
    result = capture(load_model(module), [ids(21)], stats=("lse",), keep=("q", "k"))
    maps = eager_maps(module, ids(21))
    for at in ((0, 0), (1, 3)):
        np.testing.assert_allclose(pattern(result, *at), maps[at], rtol=0, atol=5e-5)


def test_a_head_is_found_by_its_label(tiny, ids):
    result = capture(load_model(tiny("llama")), [ids(9)], stats=("lse",), keep=("q", "k"))
    part = result.isel(layer=[1], head=[3, 2])
    assert pattern(part, 1, 3).identical(pattern(result, 1, 3))
    check_refusal("layer", pattern, part, 0, 3)
    check_refusal("head", pattern, part, 1, 0)


def test_what_is_missing_is_named(tiny, ids):
    whole = capture(load_model(tiny("llama")), [ids(9)], stats=("lse",), keep=("q", "k"))
    for name in ("q", "k", "lse"):
        check_refusal("capture", pattern, whole.drop_vars(name), 0, 0)
    check_refusal("prompt", pattern, whole, 0, 0, prompt=1)
    check_refusal("queries", pattern, whole, 0, 0, queries=slice(9, None))


def test_a_window_of_many_weights_is_refused(tiny):
    model = load_model(tiny("llama", max_position_embeddings=4096))
    result = capture(model, [[1] * 2100], stats=("lse",), keep=("q", "k"))
    check_refusal("queries, keys", pattern, result, 0, 0)
    row = pattern(result, 0, 0, queries=slice(2099, None))
    np.testing.assert_allclose(row.sum(), 1, atol=1e-4)

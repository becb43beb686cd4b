"""Windows of long prompts that the model makes again, against eager attention."""

from dataclasses import replace
from typing import Any

import architectures
import numpy as np
import pytest
import torch
from bridges import bridge_of
from refusals import check_message, check_refusal, refusal

from headscope.kernels.errors import HeadscopeError
from headscope.probes import capture, load_model, pattern
from headscope.probes.attention.layer_attention import run_until_layer
from headscope.probes.capturing.memory_measurement import PeakTensorBytes
from headscope.probes.interventions import Ablate, KnockOut, Temperature, Window

LENGTH = 4001
LONG = {"max_position_embeddings": 8192, "num_attention_heads": 2, "num_key_value_heads": 1}
WIDE: dict[str, dict[str, Any]] = {
    "llama": LONG,
    "gpt2": {"n_positions": 4096, "n_head": 2},
    "gemma2": {**LONG, "sliding_window": 300},
    "gpt_oss": {**LONG, "sliding_window": 300},
}
START, MIDDLE, END = slice(0, 60), slice(2000, 2100), slice(LENGTH - 40, None)
PLACES = (
    (START, START),
    (MIDDLE, MIDDLE),
    (MIDDLE, slice(1750, 1800)),
    (END, slice(0, None, 7)),
    (slice(3900, 1000, -177), slice(5, 4000, 11)),
    (slice(1, 3000, 13), slice(7, 9)),
)


@pytest.mark.parametrize("family", WIDE)
def test_windows_of_4001_tokens_equal_eager_attention(family, tiny, ids):
    module = tiny(family, **WIDE[family])
    model = load_model(module)
    prompt = ids(LENGTH)
    result = capture(model, [prompt[:9], prompt], stats=("entropy",))
    assert "q" not in result
    _, maps = architectures.eager(module, torch.tensor([prompt]))
    for layer in range(2):
        again = run_until_layer(model, prompt, layer)
        rows = again.weights(1, np.arange(LENGTH - 3, LENGTH), np.arange(LENGTH))
        assert np.allclose(rows.sum(-1), 1, atol=1e-4) == (family != "gpt_oss")
        for queries, keys in PLACES:
            rows, columns = np.arange(LENGTH)[queries], np.arange(LENGTH)[keys]
            for head in range(2):
                expected = maps[layer][0, head].numpy()[np.ix_(rows, columns)]
                if rows[0] < rows[-1]:
                    close(again.weights(head, rows, columns), expected)
                else:
                    window = pattern(result, layer, head, 1, queries, keys, model=model)
                    assert window["query"].values.tolist() == rows.tolist()
                    assert window["key_token"].values.tolist() == [
                        str(prompt[at]) for at in columns
                    ]
                    close(window.values, expected)


def close(actual: Any, expected: Any) -> None:
    """Compare to 1e-5, and weights far below that to a part in a thousand."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-8)


def test_an_overview_is_that_of_the_capture(tiny, ids):
    model = load_model(tiny("gpt_oss", max_position_embeddings=1024))
    prompt = ids(700)
    stats = ("pooled_mean", "pooled_max", "received", "entropy")
    result = capture(model, [prompt], stats=stats, tile=24)
    for layer in range(2):
        again = run_until_layer(model, prompt, layer)
        for head in (0, 3):
            overview = again.overview(head, 24)
            assert sorted(overview) == sorted(stats)
            for name, values in overview.items():
                expected = result[name].isel(prompt=0, layer=layer, head=head)
                np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)


def test_a_forward_pass_stops_at_the_layer(tiny, ids):
    module = tiny("llama", num_hidden_layers=4)
    model = load_model(module)
    ran: list[int] = []
    handles = [
        layer.register_forward_pre_hook(lambda part, given, at=at: ran.append(at))
        for at, layer in enumerate(module.model.layers)
    ]
    run_until_layer(model, ids(9), 2)
    for handle in handles:
        handle.remove()
    assert ran == [0, 1, 2]
    assert module.config._attn_implementation != "headscope"
    check_refusal("layer", run_until_layer, model, ids(9), 4)


def test_a_bridge_gives_the_same_windows(tiny, ids, words):
    module = tiny("llama").requires_grad_(False)
    plain = load_model(module)
    prompt = ids(40)
    expected = run_until_layer(plain, prompt, 1).weights(2, np.arange(40), np.arange(40))
    model = load_model(bridge_of(module, words))
    result = capture(model, [prompt], stats=("entropy",))
    close(pattern(result, 1, 2, model=model), expected)


EDITS = (
    Window(heads=((0, 1), (1, 2)), recent=5, first=2),
    KnockOut(heads=((1, 2),), keys=(3,)),
    Temperature(heads=((1, 1),), value=0.5),
    Ablate(heads=((0, 0),)),
)


def test_edits_are_made_again_when_they_are_given(tiny, ids):
    model = load_model(tiny("llama"))
    prompt = ids(60)
    result = capture(model, [prompt], stats=("pattern", "lse"), keep=("q", "k"), edits=EDITS)
    bare = result.drop_vars(["pattern", "q", "k", "lse"])
    plain = capture(model, [prompt], stats=("pattern",))
    for kept in (result, bare):
        for layer in range(2):
            for head in range(4):
                expected = result["pattern"].values[0, layer, head]
                close(pattern(kept, layer, head, model=model, edits=EDITS), expected)
    assert (plain["pattern"] - result["pattern"]).isel(layer=1, head=0).max() > 1e-3
    for wrong in ((), EDITS[:-1], EDITS[::-1]):
        with pytest.raises(HeadscopeError, match=r"^edits: this capture was made with \[\{.* same"):
            pattern(bare, 1, 2, model=model, edits=wrong)
    with pytest.raises(HeadscopeError, match=r"^edits: this capture was made with none"):
        pattern(plain, 1, 2, model=model, edits=EDITS)
    line = "model: edits are made again by the model"
    assert str(refusal(pattern, result, 1, 2, edits=EDITS)).startswith(line)
    check_message(r"^edits: the weights of this capture were edited", pattern, result, 1, 2)


def test_another_model_or_prompt_is_refused(tiny, ids):
    model = load_model(tiny("llama"))
    result = capture(model, [ids(9), ids(12, seed=1)], stats=("entropy",))
    other = tiny("llama")
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(HeadscopeError, match=r"^model: revision sha256:\w+, but this capture was"):
        pattern(result, 0, 0, model=load_model(other))
    half = capture(tiny("llama").to(torch.bfloat16), [ids(9)], stats=("entropy",))
    cast = load_model(tiny("llama").to(torch.bfloat16).float())
    with pytest.raises(HeadscopeError, match=r"^model: dtype float32, but .* made at bfloat16"):
        pattern(half, 0, 0, model=cast)
    changed = result.copy(deep=True)
    changed["token_id"][1, 4] = (changed["token_id"][1, 4] + 1) % 64
    with pytest.raises(HeadscopeError, match=r"^capture: its token_id are not those it was made"):
        pattern(changed, 0, 0, model=model)
    # A selection has lost its digest, but not its tokens.
    part = result.isel(prompt=[1], layer=[1], head=[2, 3])
    whole = pattern(result, 1, 3, 1, model=model).assign_attrs(prompt=0)
    assert pattern(part, 1, 3, model=model).identical(whole)
    crossed = replace(model, attention="cross")
    with pytest.raises(HeadscopeError, match=r"^model: windows of cross attention are cut from"):
        pattern(result, 0, 0, model=crossed)
    check_refusal("layer", pattern, part, 0, 3, model=model)
    check_message(r"^capture: no q; .*pattern\(\.\.\., model=model\)", pattern, result, 0, 0)


def overview_and_window(model: Any, prompt: list[int]) -> int:
    """Pool a map into 128² tiles, cut a window of 256², and measure the largest tensor."""
    with PeakTensorBytes() as meter:
        again = run_until_layer(model, prompt, 1)
        pooled = again.overview(1, len(prompt) // 128)
        at = np.arange(len(prompt) - 256, len(prompt))
        window = again.weights(1, at, at)
    np.testing.assert_allclose(pooled["pooled_mean"].sum(-1), 1, atol=1e-4)
    # The last tiles of the overview say of the window what the window says.
    tile = len(prompt) // 128
    corner = window[-tile:, -tile:]
    np.testing.assert_allclose(pooled["pooled_max"][-1, -1], corner.max(), rtol=1e-4)
    np.testing.assert_allclose(pooled["pooled_mean"][-1, -1], corner.sum(-1).mean(), rtol=1e-4)
    return meter.largest


LINEAR = {**LONG, "max_position_embeddings": 32768, "intermediate_size": 32}
LINEAR |= {"vocab_size": 16, "hidden_size": 16}


def test_memory_is_linear_from_2k_to_8k_tokens(tiny, ids):
    model = load_model(tiny("llama", **LINEAR))
    # Panels have a fixed size; beyond it nothing may grow faster than the prompt.
    texts = (ids(length, vocabulary=16) for length in (2048, 8192))
    short, long = (overview_and_window(model, text) for text in texts)
    assert long <= max(4 * short, 1 << 22)
    assert long < 8192**2 / 8


@pytest.mark.slow
def test_32k_tokens_are_seen_whole_and_in_a_window(tiny, ids):
    model = load_model(tiny("llama", **LINEAR))
    prompt = ids(32768, vocabulary=16)
    assert overview_and_window(model, prompt) < 32768**2 / 64
    again = run_until_layer(model, prompt, 1)
    at = np.arange(20000, 20256)
    query, key = again.call.query[0, 0].double(), again.call.key[0, 0].double()
    logits = query[at] @ key.T * again.call.scale
    logits.masked_fill_(torch.arange(32768)[None, :] > torch.from_numpy(at)[:, None], -torch.inf)
    close(again.weights(0, at, at), logits.softmax(-1)[:, at].numpy())

"""A TransformerBridge through the same seam: same numbers, hooks fire, nothing is left behind."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from bridges import bridge_of, check_hook_z

from headscope.kernels.errors import HeadscopeError
from headscope.probes import capture, load_model
from headscope.probes.attention import projections
from headscope.probes.attention.forward import logits
from headscope.probes.interventions import Edit

FAMILIES = ["llama", "gpt2", "gpt_neox", "gemma2"]
JOINT = ["gpt2", "gpt_neox"]  # queries, keys and values in one matrix
STATS = ("lse", "entropy", "first_mass", "received", "pooled_mean")


@pytest.fixture
def wrap(tiny: Any, words: Any) -> Any:
    """Boot a bridge around a tiny model of a family."""

    def boot(family: str) -> Any:
        bridge = bridge_of(tiny(family), words)
        with torch.no_grad():
            bridge(torch.tensor([[0, 2, 3]]))  # its first pass installs hooks of its own, for good
        return bridge

    return boot


@pytest.fixture
def uneven(tiny: Any, words: Any) -> Any:
    """Boot a bridge around a tiny model whose biases and gains are not those of the start."""

    def boot(family: str) -> Any:
        module = tiny(family)
        torch.manual_seed(1)
        with torch.no_grad():
            for weight in module.parameters():
                if weight.ndim == 1:
                    weight.add_(0.3 * torch.randn_like(weight))
        bridge = bridge_of(module, words)
        with torch.no_grad():
            bridge(torch.tensor([[0, 2, 3]]))
        return bridge

    return boot


def snapshot(bridge: Any) -> dict[str, Any]:
    """Note every module by place, every hook and the attention implementation."""
    model = bridge.original_model
    return {
        "places": [
            (id(parent), name, id(part))
            for parent in model.modules()
            for name, part in parent._modules.items()
        ],
        "hooks": [
            (len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()
        ],
        "implementation": model.config._attn_implementation,
        "training": [part.training for part in model.modules()],
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bridge_gives_the_dataset_of_its_model(family, wrap, tiny, words, ids):
    prompts = [ids(19), ids(7, seed=1)]
    keep = ("q", "k", "v", "z", "resid")
    plain = capture(load_model(tiny(family), tokenizer=words), prompts, stats=STATS, keep=keep)
    bridge = wrap(family)
    before = snapshot(bridge)
    result = capture(load_model(bridge), prompts, stats=STATS, keep=keep)
    assert snapshot(bridge) == before
    # The bridge computes the norms anew, which rounds differently.
    xr.testing.assert_allclose(result, plain, rtol=1e-5, atol=5e-6)
    own = {"model": "", "special_tokens": "BOS" if bridge.cfg.default_prepend_bos else "no BOS"}
    assert {**result.attrs, "model": ""} == {**plain.attrs, **own}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_bridges_own_attention(family, wrap, ids):
    bridge = wrap(family)
    prompt = torch.tensor([ids(19)])
    with torch.no_grad():
        own = bridge(prompt)
        ours = logits(load_model(bridge), prompt)
        again = bridge(prompt)
    torch.testing.assert_close(ours, own, rtol=0, atol=1e-5)
    assert torch.equal(own, again)


@pytest.mark.parametrize("family", FAMILIES)
def test_hook_z_fires_and_its_ablation_equals_ours(family, wrap, ids):
    check_hook_z(wrap(family), torch.tensor([ids(19)]))


@pytest.mark.parametrize("family", ["llama", *JOINT])
def test_other_hooks_see_what_they_see_without_us(family, wrap, ids):
    bridge = wrap(family)
    model = load_model(bridge)
    prompt = torch.tensor([ids(19)])
    names = [
        "blocks.0.hook_resid_post", "blocks.0.hook_mlp_out", "blocks.1.hook_resid_pre",
        "blocks.1.hook_attn_out", *(f"blocks.1.attn.hook_{name}" for name in ("in", "q", "k", "v")),
    ]  # fmt: skip
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}

    def watch(name: str) -> tuple[str, Any]:
        return name, lambda value, hook: seen[name].append(value.detach().clone())

    with torch.no_grad(), bridge.hooks([watch(name) for name in names]):
        bridge(prompt)
        logits(model, prompt)
    for name, values in seen.items():
        assert len(values) == 2, name
        torch.testing.assert_close(values[1], values[0], rtol=0, atol=1e-5)


def test_a_hook_that_cannot_fire_is_refused_by_name(wrap, ids):
    bridge = wrap("llama")
    model = load_model(bridge)
    before = snapshot(bridge)
    for name in ("hook_pattern", "hook_attn_scores", "hook_rot_q"):
        with (
            bridge.hooks([(f"blocks.1.attn.{name}", lambda value, hook: value)]),
            pytest.raises(HeadscopeError, match=rf"^blocks\.1\.attn\.{name}: "),
        ):
            capture(model, [ids(5)])
    assert snapshot(bridge) == before
    assert capture(model, [ids(5)]).sizes["layer"] == 2


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_processing_after_loading_is_refused_until_loaded_again(family, uneven, ids):
    bridge = uneven(family)
    model = load_model(bridge)
    capture(model, [ids(5)], stats=("entropy",))
    bridge.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(HeadscopeError, match=r"^model: .*load_model\(bridge\) again"):
        capture(model, [ids(5)], stats=("entropy",))
    again = load_model(bridge)
    assert again.revision != model.revision
    prompt = torch.tensor([ids(5)])
    with torch.no_grad():
        torch.testing.assert_close(logits(again, prompt), bridge(prompt), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", JOINT)
def test_a_processed_bridge_gives_its_own_patterns_and_logits(family, uneven, ids):
    bridge = uneven(family)
    own = load_model(bridge)
    prompt = torch.tensor([ids(19)])
    with torch.no_grad():
        _, before = bridge.run_with_cache(prompt)
        bridge.enable_compatibility_mode(disable_warnings=True)
        expected, cache = bridge.run_with_cache(prompt)
    # The folded value biases are no longer in what heads give: another split of one function.
    assert not torch.allclose(cache["blocks.1.attn.hook_z"], before["blocks.1.attn.hook_z"])
    kept = snapshot(bridge)
    model = load_model(bridge)
    found = capture(model, [ids(19)], stats=("pattern",), keep=("z",))
    assert snapshot(bridge) == kept
    for layer in range(model.layers):
        one = found.isel(layer=layer, prompt=0)
        patterns = cache[f"blocks.{layer}.attn.hook_pattern"][0].numpy()
        np.testing.assert_allclose(one["pattern"], patterns, rtol=0, atol=1e-5)
        z = cache[f"blocks.{layer}.attn.hook_z"][0].view(19, model.heads, -1)
        ours = one["z"].transpose("query", "head", "size")
        np.testing.assert_allclose(ours, z, rtol=0, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(logits(model, prompt), expected, rtol=0, atol=1e-5)
    assert own.revision != model.revision


@pytest.mark.parametrize("family", JOINT)
def test_an_edit_of_a_processed_bridge_equals_its_hook_z(family, uneven, ids):
    bridge = uneven(family)
    bridge.enable_compatibility_mode(disable_warnings=True)
    check_hook_z(bridge, torch.tensor([ids(19)]))


@pytest.mark.parametrize("family", JOINT)
@pytest.mark.parametrize("processed", [False, True])
def test_weights_that_are_read_are_those_of_the_bridge(family, processed, uneven):
    bridge = uneven(family)
    if processed:
        bridge.enable_compatibility_mode(disable_warnings=True)
    weights = projections.read(load_model(bridge))
    for layer, block in enumerate(bridge.blocks):
        for part in "qkvo":
            expected = getattr(block.attn, f"W_{part.upper()}").detach().double()
            torch.testing.assert_close(weights.of(layer, part), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", JOINT)
def test_a_bridge_with_other_weights_in_an_unknown_layout_is_refused(family, uneven):
    """Halves of what the joint matrix gives are not its outputs in another order."""
    bridge = uneven(family)

    for block in bridge.blocks:
        split = block.attn.split_qkv_matrix

        def halved(attention: Any, split: Any = split) -> Any:
            parts = split(attention)
            for part in parts:
                part.weight.data = part.weight.data / 2
            return parts

        block.attn.split_qkv_matrix = halved
    load_model(bridge)
    bridge.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(HeadscopeError, match=r"^model: .*no_processing=True"):
        load_model(bridge)


def test_a_bridge_is_restored_after_an_error(wrap, ids):
    bridge = wrap("gpt2")
    model = load_model(bridge)
    before = snapshot(bridge)

    class Broken(Edit):
        def apply(self, layer: int, z: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("broken edit")

    with pytest.raises(RuntimeError, match=r"broken edit"):
        capture(model, [ids(5)], edits=(Broken(),))
    assert snapshot(bridge) == before


def test_text_goes_through_the_tokenizer_of_the_bridge(wrap):
    result = capture(load_model(wrap("llama")), "w1 w2 w1", stats=("entropy",))
    assert result["token"].values[0].tolist() == ["<bos>", "w1", "w2", "w1"]
    assert np.isfinite(result["entropy"].values).all()


def test_transformer_lens_is_not_imported_for_a_plain_model(tiny, monkeypatch):
    for name in [
        module for module in sys.modules if module.partition(".")[0] == "transformer_lens"
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformer_lens", None)  # importing it now fails
    assert capture(load_model(tiny("llama")), [[1, 2, 3]]).sizes["layer"] == 2

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
from headscope.probes.attention.forward import logits
from headscope.probes.interventions import Edit

FAMILIES = ["llama", "gpt2", "gpt_neox", "gemma2"]
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


def test_other_hooks_see_what_they_see_without_us(wrap, ids):
    bridge = wrap("llama")
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


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_a_bridge_with_other_weights_than_its_model_is_refused(family, tiny, words):
    """Queries, keys and values in one matrix: the bridge processes copies, split, of its own."""
    module = tiny(family)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight))
    bridge = bridge_of(module, words)
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

"""Sigmoid attention: followed through a model, captured, and read by what rows need no sum for.

A model whose user has registered an attention of their own for transformers, as sigmoid models are
made. The oracle is that attention itself, run eagerly in float64.
"""

import copy
import math
import types

import architectures
import numpy as np
import pytest
import torch
import transformers
from constructed import WORDS, rotary_sink, tokenizer
from refusals import check_refusal
from transformers import AttentionInterface

from headscope import analyses
from headscope.analyses import massive, sink_controls, sink_topology, sinks
from headscope.analyses._runtime import runner
from headscope.kernels.errors import NotApplicable, UnsupportedModel
from headscope.probes import capture, load_model, pattern
from headscope.probes.interventions import Ablate

LENGTH = 48


def scores(module, query, key, value, scaling):
    key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (key, value))
    hidden = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).triu(1)
    return (query @ key.transpose(2, 3) * scaling).masked_fill(hidden, -math.inf), value


def sigmoid(module, query, key, value, attention_mask, scaling, **_):
    logits, value = scores(module, query, key, value, scaling)
    weights = torch.sigmoid(logits - math.log(LENGTH))
    return (weights @ value).transpose(1, 2).contiguous(), weights


def squared(module, query, key, value, attention_mask, scaling, **_):
    logits, value = scores(module, query, key, value, scaling)
    weights = torch.softmax(logits, dim=-1) ** 2
    return (weights @ value).transpose(1, 2).contiguous(), weights


def soft(module, query, key, value, attention_mask, scaling, **_):
    logits, value = scores(module, query, key, value, scaling)
    weights = torch.softmax(logits, dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


for function in (sigmoid, squared, soft):
    AttentionInterface.register(f"test_{function.__name__}", function)


def random_llama(implementation: str = "test_sigmoid"):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, attn_implementation=implementation,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model():
    return load_model(random_llama(), tokenizer=tokenizer())


@pytest.fixture(scope="module")
def prompts():
    drawn = np.random.default_rng(0).integers(1, len(WORDS), size=(3, LENGTH))
    drawn[:, 0] = 0
    return drawn.tolist()


def dense(module, ids: list[int]) -> np.ndarray:
    """Run a model's own attention in float64; its weights (layer, head, query, key)."""
    with torch.no_grad():
        result = copy.deepcopy(module).double()(torch.tensor([ids]), output_attentions=True)
    return torch.stack(result.attentions)[:, 0].numpy()


def received(weights: np.ndarray) -> np.ndarray:
    """Average each column over the queries that see it (layer, head, key)."""
    return weights.sum(-2) / np.arange(weights.shape[-1], 0, -1)


@pytest.mark.requirement("A1")
def test_a_capture_of_a_sigmoid_model_is_its_own_attention(model, prompts):
    stats = ("received", "received_share", "max_weight", "first_mass", "pattern")
    cap = capture(model, prompts, stats=stats)
    assert cap.attrs["weights"] == "sigmoid"
    assert "rows do not sum to one" in cap.attrs["convention"]
    for at, ids in enumerate(prompts):
        weights = dense(model.module, ids)
        shares = weights / weights.sum(-1, keepdims=True)
        for name, expected in (
            ("pattern", weights), ("received", received(weights)), ("max_weight", weights.max(-1)),
            ("first_mass", weights[..., 0]), ("received_share", received(shares)),
        ):  # fmt: skip
            np.testing.assert_allclose(cap[name][at], expected, atol=1e-6, err_msg=name)
        # Far from one, or this would say nothing.
        assert np.abs(weights.sum(-1) - 1).mean() > 0.1
        again = pattern(cap, layer=1, head=2, prompt=at, model=model)
        np.testing.assert_allclose(again, weights[1, 2], atol=1e-6)


@pytest.mark.requirement("A1")
def test_sinks_of_a_sigmoid_model_are_those_of_the_dense_rows(model, prompts):
    result = runner.execute("sinks", model, prompts)
    maps = np.stack([dense(model.module, ids) for ids in prompts])
    alpha = received(maps / maps.sum(-1, keepdims=True))
    np.testing.assert_allclose(result["sink"], alpha[..., 0].mean(0), atol=1e-6)
    steady = alpha[..., : LENGTH - 15]
    np.testing.assert_allclose(result["later_sink"], steady[..., 1:].max(-1).mean(0), atol=1e-6)
    np.testing.assert_allclose(
        result["key_received"][: LENGTH - 15], steady.mean((0, 1, 2)), atol=1e-6
    )
    # Gu et al.: no sinks at random weights, and none under sigmoid attention.
    assert float(result["sink_rate"]) == float(result["later_sink_rate"]) == 0.0
    assert all("row of sigmoid weights is divided" in result[name].attrs["convention"]
               for name in ("sink", "later_sink", "sink_rate", "key_share"))  # fmt: skip


@pytest.mark.requirement("A1")
def test_a_planted_sigmoid_sink_is_found_by_every_analysis_that_reads_such_rows():
    module = rotary_sink().module
    module.config._attn_implementation_internal = "test_sigmoid"
    model = load_model(module, tokenizer=tokenizer())
    ids = [[0, *np.random.default_rng(seed).permutation(24) + 1] for seed in (0, 1)]
    ids = np.array(ids).tolist()
    cap = capture(model, ids, stats=("received", "received_share"))
    result = sinks.run(cap, least_queries=4)
    assert result.attrs["heads_by_type"]["sink"] == ["L0H0"]
    # <bos> has weight 1 in the sink's head; every other weight is σ(−ln 48) = 1/49.
    rows = np.arange(len(ids[0]))
    expected = [(1 / (1 + rows / (LENGTH + 1))).mean(), (1 / (1 + rows)).mean()]
    np.testing.assert_allclose(result["sink"][0], expected, atol=2e-3)
    assert sink_topology.run(cap, model, least_queries=4).attrs["topology"] == "centralised"
    assert massive.run(cap, model).attrs["massive"] == []
    controls = sink_controls.run(cap, model, tokens=24, prompts=2)
    rate = controls["rate"].sel(condition="repeated token")
    assert float(rate) == 0.0
    bare = cap.drop_vars("received_share")
    check_refusal("capture", sinks.run, bare)


@pytest.mark.requirement("A1", "F7")
@pytest.mark.parametrize("name", analyses.names())
def test_analyses_that_take_rows_for_shares_refuse_them(name, model, prompts):
    if "sigmoid" in analyses.load(name).SUPPORTS:
        return
    with pytest.raises(NotApplicable, match=f"weights: {name} takes"):
        runner.execute(name, model, prompts, options=getattr(analyses.load(name), "QUICK", {}))


@pytest.mark.requirement("A1", "F7")
def test_a_refused_analysis_leaves_the_others_their_capture(model, prompts):
    outcomes = dict(runner.execute_many(("entropy", "sinks"), model, prompts))
    assert isinstance(outcomes["entropy"], NotApplicable)
    assert "sink" in outcomes["sinks"]
    with pytest.raises(NotApplicable, match="shares of one whole"):
        capture(model, prompts, stats=("entropy",))


def test_an_edit_changes_a_sigmoid_model_as_it_would_its_own_code(model, prompts):
    edited = capture(model, prompts[:1], stats=(), keep=("z", "resid"), edits=(Ablate([(0, 1)]),))
    silent = copy.deepcopy(model.module)
    with torch.no_grad():
        silent.model.layers[0].self_attn.o_proj.weight[:, 16:32] = 0.0
        states = silent(torch.tensor(prompts[:1]), output_hidden_states=True).hidden_states
    np.testing.assert_allclose(edited["resid"][0, 1], states[1][0], atol=1e-5)


def test_sigmoid_steps_outside_the_interface_are_followed():
    def attend(self, query, key, value, attention_mask=None):
        logits = query @ key.transpose(-1, -2) / self.scale_attn + attention_mask
        weights = torch.sigmoid(logits - 3.0)
        return weights @ value, weights

    module = architectures.build("gptj")
    for block in module.transformer.h:
        block.attn._attn = types.MethodType(attend, block.attn)
    model = load_model(module)
    assert model.geometry.sigmoid
    ids = list(range(3, 40))
    result = capture(model, [ids], stats=("received", "pattern"))
    maps = torch.stack(architectures.eager(module, torch.tensor([ids]))[1])[:, 0].double().numpy()
    np.testing.assert_allclose(result["pattern"][0], maps, atol=1e-5)
    np.testing.assert_allclose(result["received"][0], received(maps), atol=1e-5)


def test_a_registered_attention_that_is_softmax_is_one(prompts):
    own = load_model(random_llama("test_soft"))
    plain = load_model(random_llama("eager"))
    stats = ("received", "entropy")
    ours, expected = (capture(one, prompts, stats=stats) for one in (own, plain))
    for name in stats:
        np.testing.assert_allclose(ours[name], expected[name], atol=1e-5)
    assert ours.attrs["weights"] == "softmax"


def test_a_registered_attention_that_cannot_be_followed_is_refused():
    with pytest.raises(UnsupportedModel, match="cannot be followed at pow"):
        load_model(random_llama("test_squared"))

"""Relevance by gradients and LRP: against dense maps, by conservation, by planted circuits."""

import importlib.util
from dataclasses import replace

import architectures
import numpy as np
import pytest
import torch
from constructed import repeated
from refusals import check_message, check_refusal

from headscope.analyses._interventions.ablation import encode_task
from headscope.analyses._relevance import (
    _lrp_rules,
    _rows,
    gradient_attention,
    input_x_gradient,
    integrated_gradients,
    methods,
    target,
    transformer_attribution,
)
from headscope.analyses._relevance import lrp as lrp_method
from headscope.analyses._relevance.trace import Trace
from headscope.probes import load_model

# GQA, windows, a soft cap, learned sinks, ALiBi, MLA, parallel blocks, sandwich norms.
FOLLOWED = (
    "gpt2", "llama", "mistral", "gemma2", "gemma3_text", "gpt_oss", "deepseek_v3", "mpt", "falcon",
    "gpt_neox", "gpt_neo", "qwen3",
)  # fmt: skip
CONSERVED = ("gpt2", "opt", "gpt_neox", "phi", "phi3", "llama", "mistral", "qwen3", "gemma3_text")
IDS = [(7 * at + 3) % 60 + 2 for at in range(20)]


def traced(family):
    model = load_model(architectures.build(family))
    return Trace(model, target.predicted(model, IDS))


def dense_maps(trace, other=None):
    """Maps and their gradients (layer, head, query, key) in float64, from eager attention and z."""
    maps = architectures.eager_maps(trace.model.module, IDS)
    layers = (other or trace).graded_layers.values()
    slopes = []
    for layer in layers:
        groups = layer.dz.shape[1] // layer.call.value.shape[1]
        value = layer.call.value[0].repeat_interleave(groups, 0).double()
        slopes.append(layer.dz[0].double() @ value.mT)
    # What a learned sink takes is the last column of eager maps, and no key.
    return maps[..., : len(IDS)].numpy(), torch.stack(slopes).numpy()


@pytest.mark.requirement("C2")
@pytest.mark.parametrize("family", FOLLOWED)
def test_rows_are_those_of_dense_maps(family):
    trace = traced(family)
    maps, slopes = dense_maps(trace)
    weighed = (maps * slopes).clip(min=0).mean(1)
    whole = np.eye(len(IDS))
    for each in weighed:
        whole = whole + each @ whole
    result = gradient_attention.relevance(trace)
    np.testing.assert_allclose(result, whole[-1], rtol=1e-3, atol=1e-5)
    # The published variant of rollout: normalised rows, the first layer left out.
    normal = np.eye(len(IDS))
    for each in weighed[1:]:
        link = np.eye(len(IDS)) + each
        normal = link / link.sum(1, keepdims=True) @ normal
    rows, _ = _rows.follow(trace, gradient_attention.link, normalize=True, start=1)
    np.testing.assert_allclose(rows[:, 0], normal[-1], rtol=1e-3, atol=1e-5)
    assert rows.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.requirement("C2")
@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "llama", "gemma3_text"])
def test_the_gradient_of_a_weight_is_that_of_autograd(family):
    """Through eager attention, whose maps torch itself differentiates."""
    trace = traced(family)
    module = trace.model.module
    architectures.switch(module, "eager")
    result = module(input_ids=torch.tensor([IDS]), output_attentions=True)
    answer = trace.target.score(result.logits[:, -1])
    slopes = torch.autograd.grad(answer.sum(), result.attentions)
    architectures.switch(module, "sdpa")
    maps, actual = dense_maps(trace)
    seen = maps > 0
    np.testing.assert_allclose(actual[seen], torch.cat(slopes).numpy()[seen], rtol=1e-3, atol=1e-5)


@pytest.mark.requirement("C2")
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gemma2"])
def test_transformer_attribution_is_gradient_times_relevance(family):
    trace = traced(family)
    maps, slopes = dense_maps(trace)
    _, relevant = dense_maps(trace, _lrp_rules.linear(trace))
    whole = np.eye(len(IDS))
    for each in (slopes * relevant * maps).clip(min=0).mean(1):
        whole = whole + each @ whole
    result = transformer_attribution.relevance(trace)
    np.testing.assert_allclose(result, whole[-1], rtol=1e-3, atol=1e-6)


@pytest.mark.requirement("C2")
def test_heads_add_up_to_the_row(bundled):
    trace = Trace(bundled, target.predicted(bundled, IDS))
    rows, added = _rows.follow(trace, gradient_attention.link)
    assert float(rows.sum()) == pytest.approx(1 + float(added.sum()), rel=1e-5)
    # A head whose output counts for nothing adds nothing.
    silent = replace(trace.graded_layers[0], dz=trace.graded_layers[0].dz.clone())
    silent.dz[:, 1] = 0.0
    trace.graded_layers[0] = silent
    assert _rows.follow(trace, gradient_attention.link)[1][0, 1] == 0


@pytest.mark.requirement("C3")
@pytest.mark.parametrize("family", CONSERVED)
def test_relevance_is_conserved(family):
    trace = traced(family)
    passed = _lrp_rules.linear(trace)
    assert passed.tokens.sum() + passed.ledger.bias == pytest.approx(trace.score, rel=1e-4)
    damped = _lrp_rules.LinearTrace(trace.model, trace.target, 0.05)
    lost = damped.ledger
    assert abs(damped.tokens).sum() < abs(passed.tokens).sum()
    assert damped.tokens.sum() + lost.bias + lost.absorbed == pytest.approx(trace.score, rel=1e-4)
    # Gradients do not conserve: what is measured is no property of the model.
    plain = input_x_gradient.relevance(trace).sum()
    assert plain != pytest.approx(trace.score, rel=1e-2)


@pytest.mark.requirement("C3")
def test_relevance_of_a_linear_model_is_exact():
    """Without attention between tokens and without MLP, relevance is the direct path alone."""
    model = load_model(architectures.build("llama", num_hidden_layers=1))
    with torch.no_grad():
        block = model.module.model.layers[0]
        block.mlp.down_proj.weight.zero_()
        block.self_attn.q_proj.weight.zero_()  # uniform attention
    trace = Trace(model, target.predicted(model, IDS))
    result = lrp_method.relevance(trace)
    with torch.no_grad():
        x = model.module.get_input_embeddings()(torch.tensor(IDS)).double()
        root = (x.square().mean(-1, keepdim=True) + model.module.config.rms_norm_eps).sqrt()
        attention = block.self_attn
        groups = 2
        value = (x / root * block.input_layernorm.weight) @ attention.v_proj.weight.double().T
        value = value.view(len(IDS), 2, -1).repeat_interleave(groups, 1).flatten(1)
        moved = value / len(IDS) @ attention.o_proj.weight.double().T
        moved[-1] += x[-1]
        last = moved.sum(0)
        scale = (last.square().mean() + model.module.config.rms_norm_eps).sqrt()
        direction = model.module.lm_head.weight[trace.target.answer_ids[0]].double()
        expected = moved / scale * model.module.model.norm.weight @ direction
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)


def test_what_the_rules_do_not_know_is_refused():
    for family in ("mixtral", "gpt_oss", "lfm2", "bamba"):
        check_refusal("model", lrp_method.relevance, traced(family))
    capped = architectures.build("gemma2", final_logit_softcapping=0.1)
    model = load_model(capped)
    check_message(
        "misses .* of a score", lrp_method.relevance, Trace(model, target.predicted(model, IDS))
    )


def test_hybrids_are_not_followed():
    check_message("no attention map", gradient_attention.relevance, traced("lfm2"))


def test_modules_are_put_back(bundled):
    before = {name: dict(part._forward_hooks) for name, part in bundled.module.named_modules()}
    trace = Trace(bundled, target.predicted(bundled, IDS))
    lrp_method.relevance(trace)
    assert before == {n: dict(part._forward_hooks) for n, part in bundled.module.named_modules()}
    assert trace.score == pytest.approx(float(trace.target.scores(bundled, torch.tensor([IDS]))[0]))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_integrated_gradients_are_complete(family):
    trace = traced(family)
    result, missing = integrated_gradients.integrate(trace)
    assert missing <= integrated_gradients.TOLERANCE
    base = trace.embedding.mean(0).expand_as(trace.embedding)
    with torch.no_grad():
        logits = at_embeddings(trace.model.module, base)
    gained = trace.score - float(trace.target.score(logits))
    assert abs(result.sum() - gained) <= missing * max(abs(gained), abs(trace.score)) + 1e-5
    # More points than needed: the plain Riemann sum of the definition.
    slopes = torch.zeros_like(base)
    for place in (torch.arange(400) + 0.5) / 400:
        stream = (base + place * (trace.embedding - base)).requires_grad_(True)
        score = trace.target.score(at_embeddings(trace.model.module, stream))
        slopes += torch.autograd.grad(score.sum(), stream)[0] / 400
    expected = (slopes * (trace.embedding - base)).sum(-1)
    np.testing.assert_allclose(result, expected, atol=0.05 * float(expected.abs().max()))


def at_embeddings(module, stream):
    """Logits of the last position where ``stream`` enters the first block."""
    first = (module.transformer.h if hasattr(module, "transformer") else module.model.layers)[0]
    hook = first.register_forward_pre_hook(lambda part, args: (stream[None], *args[1:]))
    try:
        return module(input_ids=torch.tensor([IDS])).logits[:, -1]
    finally:
        hook.remove()


def test_integrated_gradients_refuse_what_they_miss(bundled, monkeypatch):
    trace = Trace(bundled, target.predicted(bundled, IDS))
    monkeypatch.setattr(integrated_gradients, "TOLERANCE", 1e-9)
    monkeypatch.setattr(integrated_gradients, "POINTS", 40)
    check_message("miss .* of the", integrated_gradients.relevance, trace)


def test_every_method_answers_and_states_what_it_is(circuit):
    task = encode_task(circuit, repeated(n=1, length=4))
    trace = Trace(circuit, target.of_task(task)[0])
    for name, method in methods().items():
        if name == "attn_lrp":
            continue
        result = method.relevance(trace)
        assert result.shape == (len(trace.target.ids),), name
        assert np.isfinite(result).all(), name
        assert method.signed or (result >= 0).all(), name


@pytest.mark.requirement("C2")
def test_gradient_relevance_finds_the_planted_copy(circuit):
    """L1H0 copies the token after an earlier copy; what is read there gets the relevance."""
    task = encode_task(circuit, repeated(n=3, length=4))
    for place in target.of_task(task):
        trace = Trace(circuit, place)
        evidence = len(place.ids) - 4  # where the answer stood
        for method in ("gradient_attention", "transformer_attribution", "lrp"):
            result = methods()[method].relevance(trace).copy()
            result[place.at] = 0.0  # its own 1
            assert int(result.argmax()) == evidence, method


def test_the_optional_package_is_asked_for(bundled):
    trace = Trace(bundled, target.predicted(bundled, IDS))
    if importlib.util.find_spec("lxt") is not None:
        pytest.skip("lxt is installed")
    check_message("pip install --no-deps lxt", methods()["attn_lrp"].relevance, trace)


def test_attn_lrp_through_lxt():
    """With lxt: its CP-LRP is our LRP, and AttnLRP leaves the model as it was."""
    if importlib.util.find_spec("lxt") is None:
        pytest.skip("needs lxt")
    from headscope.analyses._relevance import attn_lrp

    attn_lrp._notice.cache_clear()
    trace = traced("llama")
    with pytest.warns(UserWarning, match="no patent rights"):
        result = attn_lrp.relevance(trace)
    assert result.shape == (len(IDS),)
    assert "forward" not in vars(trace.model.module.model.norm)
    rules = attn_lrp._rules("models.llama")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "attnLRP", rules.cp_LRP)
        patches = attn_lrp._rules("patches")
        patch.setattr(patches, "wrap_attention_forward", patches.cp_wrap_attention_forward)
        other = attn_lrp.relevance(trace)
    np.testing.assert_allclose(other, lrp_method.relevance(trace), rtol=1e-3, atol=1e-5)

import architectures
import numpy as np
import pytest
import torch
from constructed import repeated, tokenizer
from refusals import check_message, check_refusal

from headscope.analyses import gradient_relevance
from headscope.analyses._interventions import ablation
from headscope.analyses._relevance import gradient_attention, target
from headscope.analyses._relevance.trace import Trace
from headscope.analyses.attribution import _pair_relevance
from headscope.probes import capture, load_model
from headscope.probes.prompts import tasks

SOURCE, TARGET = [3, 9, 4, 11, 5, 1], [0, 7, 8, 9]


@pytest.fixture(scope="module")
def task():
    return repeated(n=4, length=4)


@pytest.fixture(scope="module")
def captured(circuit, task):
    return capture(circuit, task, stats=(), keep=("z",))


@pytest.mark.requirement("C2")
@pytest.mark.parametrize("rules", gradient_relevance.RULES)
def test_the_copying_head_has_the_relevance_and_the_effect(circuit, captured, task, rules):
    result = gradient_relevance.run(captured, circuit, task, rules=rules, prompt=1)
    for name in ("head_relevance", "ablation_effect"):
        scores = np.abs(result[name].values)
        assert np.unravel_index(scores.argmax(), scores.shape) == (1, 0), name
    assert float(result["head_relevance"].sum()) == pytest.approx(1, abs=1e-6)
    assert result["ablation_effect"].attrs["evidence"] == "causal"
    shown = target.of_task(ablation.encode_task(circuit, task))[1]
    expected = gradient_attention.relevance(Trace(circuit, shown))
    np.testing.assert_allclose(result["gradient_attention"], expected, rtol=1e-6)
    row = result["relevance_map"].values[-1] + np.eye(len(shown.ids))[-1]
    np.testing.assert_allclose(row, result[rules].values, rtol=1e-5)


@pytest.mark.requirement("C2")
def test_relevance_ranks_the_heads_of_a_trained_model_like_ablation(bundled):
    task = tasks.make("ioi", tokenizer=bundled.tokenizer, n=8, seed=1)
    cap = capture(bundled, task, stats=(), keep=("z",))
    for rules in gradient_relevance.RULES:
        result = gradient_relevance.run(cap, bundled, task, rules=rules, map_tokens=0)
        assert float(result["relevance_vs_ablation_lower"]) > 0
        assert result.attrs["verdict"] == "supported"
        assert "relevance_map" not in result
    normal = gradient_relevance.run(cap, bundled, task, normalize=True, start_layer=2)
    assert float(normal["gradient_attention"].sum()) == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(normal["head_relevance"][:2], 0.0)
    assert float(normal["head_relevance"].sum()) == pytest.approx(1, abs=1e-6)


def test_bad_input_is_refused(circuit, captured, task):
    run = gradient_relevance.run
    check_refusal("start_layer", run, captured, circuit, task, start_layer=2)
    check_refusal("prompt", run, captured, circuit, task, prompt=4)
    check_refusal("capture", run, captured.drop_vars("z"), circuit, task)


def test_a_rule_set_that_a_model_does_not_allow_is_left_out_and_reported():
    """Experts have no LRP rules: without R_A there is no transformer attribution."""
    model = load_model(architectures.build("gpt_oss"), tokenizer=tokenizer())
    task = repeated(n=2, length=3)
    cap = capture(model, task, stats=(), keep=("z",))
    result = gradient_relevance.run(cap, model, task)
    assert "gradient_attention" in result
    assert "transformer_attribution" not in result
    assert "No transformer_attribution: model: GptOssForCausalLM" in result.attrs["note"]
    other = {"rules": "transformer_attribution"}
    check_message("experts", gradient_relevance.run, cap, model, task, **other)


def by_hand(self_s, self_q, cross):
    """Equations 5 to 11 spelled out, with loops, for two texts: encoder q, decoder s."""
    s, q = len(cross[0]), len(cross[0][0])
    r_qq, r_ss, r_sq = np.eye(q), np.eye(s), np.zeros((s, q))

    def bar(relevance):
        result = np.eye(len(relevance))
        for i, row in enumerate(relevance - np.eye(len(relevance))):
            if row.sum() > 0:
                result[i] += row / row.sum()
        return result

    for a in self_q:
        r_qq = r_qq + a @ r_qq
    for a, c in zip(self_s, cross, strict=True):
        r_sq = r_sq + a @ r_sq
        r_ss = r_ss + a @ r_ss
        r_sq = r_sq + bar(r_ss).T @ c @ bar(r_qq)
    return r_ss, r_sq, r_qq


@pytest.mark.requirement("C2")
@pytest.mark.parametrize("attention", ["cross", "encoder"])
def test_the_rules_of_pairs_are_those_of_autograd_on_dense_maps(paired_folder, attention):
    """T5: maps and gradients from its own eager attention, the equations by hand."""
    model = load_model(str(paired_folder), attention=attention)
    module = model.module
    module.set_attn_implementation("eager")
    module.requires_grad_(True)
    result = module(
        input_ids=torch.tensor([SOURCE]), decoder_input_ids=torch.tensor([TARGET]),
        output_attentions=True,
    )  # fmt: skip
    kinds = (result.decoder_attentions, result.encoder_attentions, result.cross_attentions)
    answer = int(result.logits[0, -1].argmax())
    maps = [attention_map for kind in kinds for attention_map in kind]
    slopes = torch.autograd.grad(result.logits[0, -1, answer], maps)
    module.set_attn_implementation("sdpa")
    module.requires_grad_(attention == "cross")  # with and without weights that train
    weighed = [
        (attention_map * slope)[0].clamp_min(0).mean(0).detach().double().numpy()
        for attention_map, slope in zip(maps, slopes, strict=True)
    ]
    own, encoder, cross = (weighed[:3], weighed[3:5], weighed[5:])
    r_ss, r_sq, _ = by_hand(own, encoder, cross)
    actual = gradient_relevance.of_pair(model, SOURCE, TARGET)
    assert actual.attrs["answer"] == answer
    np.testing.assert_allclose(actual["cross_relevance"], r_sq, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(actual["source_relevance"], r_sq[-1], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(actual["target_relevance"], r_ss[-1], rtol=1e-3, atol=1e-6)


@pytest.mark.requirement("C2")
def test_co_attention_follows_both_directions():
    draw = np.random.default_rng(0)
    forth, back, own = draw.random((3, 4)), draw.random((4, 3)), draw.random((3, 3))
    state = _pair_relevance.Relevance.start(3, 4).attend_self(own)
    # Before any exchange, R_qq is I and R_qs is 0: equations 10 and 11 in closed form.
    bar = np.eye(3) + own / own.sum(1, keepdims=True)
    once = state.attend_co(forth, back)
    np.testing.assert_allclose(once.sq, bar.T @ forth)
    np.testing.assert_allclose(once.qs, back @ bar)
    np.testing.assert_allclose(once.ss, np.eye(3) + own)
    twice = once.attend_co(forth, back)
    np.testing.assert_allclose(twice.ss, once.ss + forth @ once.qs)
    np.testing.assert_allclose(twice.qq, np.eye(4) + back @ once.sq)
    # A text that nothing has reached has rows of 0 / 0.
    assert np.isfinite(twice.sq).all()
    weights, gradient = draw.random((2, 3, 4)), draw.normal(size=(2, 3, 4))
    expected = sum(np.maximum(weights[head] * gradient[head], 0) for head in range(2)) / 2
    np.testing.assert_allclose(_pair_relevance.weigh(weights, gradient), expected)


def test_pairs_refuse_one_text(circuit, paired_folder):
    check_refusal("model", gradient_relevance.of_pair, circuit, SOURCE, TARGET)
    model = load_model(str(paired_folder), attention="cross")
    check_message("source: an empty", gradient_relevance.of_pair, model, [], TARGET)

"""Sink calibration: the edit in closed form, and heads whose sink is harmful or helpful."""

import numpy as np
import pytest
import torch
from constructed import WORDS, rotary_sink
from refusals import check_refusal

from headscope.analyses import sink_calibration
from headscope.analyses._interventions import screening
from headscope.analyses._interventions.next_token_loss import mean_loss
from headscope.probes import capture, load_model
from headscope.probes.interventions import ScaleKeys

# Words that the planted model can say.
OUT = 13
# Words without repetition, so that copying an earlier one is always wrong.
PROMPTS = [
    [0, *np.random.default_rng(seed).permutation(np.arange(1, OUT)).tolist()] for seed in range(16)
]
MIDDLE = [[*one[1:9], 0, *one[9:]] for one in PROMPTS]
OPTIONS = {"gammas": "0.5 1 2", "least_queries": 2, "epsilon": 0.2}


@torch.no_grad()
def planted(harmful: bool):
    """L0H0 leaves part of its weight on <bos>; what it copies, there or elsewhere, is wrong."""
    module = rotary_sink().module
    attention = module.model.layers[0].self_attn
    attention.k_proj.weight *= 0.12
    words = torch.arange(OUT)
    attention.v_proj.weight.zero_()
    attention.v_proj.weight[words, words] = 0.1 if harmful else 1.0
    attention.v_proj.weight[0, 0] = 1.0 if harmful else 0.0
    # Only L0H0 writes, where nothing but the logits reads: copying is all that the model says.
    attention.o_proj.weight.zero_()
    attention.o_proj.weight[len(WORDS) + words, words] = 1.0
    module.lm_head.weight.zero_()
    module.lm_head.weight[words, len(WORDS) + words] = 1.0
    return load_model(module, tokenizer=rotary_sink().tokenizer)


def run(model, prompts, **options):
    captured = capture(model, prompts, stats=("received",))
    return sink_calibration.run(captured, model, **{**OPTIONS, **options})


@pytest.mark.requirement("A5")
@pytest.mark.parametrize(("harmful", "sign"), [(True, -1), (False, 1)])
def test_a_sink_is_harmful_or_helpful_by_what_stands_there(harmful, sign):
    result = run(planted(harmful), PROMPTS)
    assert sign * float(result["first_less"][0, 0]) > 0.01
    assert sign * float(result["first_more"][0, 0]) < -0.01
    assert float(result["best_gamma"][0, 0]) == (0.5 if harmful else 2.0)
    # L0H1 writes nothing, whatever its weights.
    assert abs(float(result["first_less"][0, 1])) < 1e-5
    assert result["verdict"].values.tolist() == [[sign, 0]]
    name = "harmful sinks" if harmful else "helpful sinks"
    assert result.attrs["heads_by_type"][name] == ["L0H0"]
    assert abs(float(result["sweep"].sel(gamma=1.0, scaled="first token"))) < 1e-6


def test_few_prompts_call_no_sink_helpful_or_harmful():
    result = run(planted(True), PROMPTS[:15])
    assert np.isnan(result["verdict"].values).all()
    assert result.attrs["verdict"] == "too_few"
    assert not any(result.attrs["heads_by_type"].values())


def test_a_screen_scales_the_head_that_the_loss_depends_on_and_leaves_the_other_missing(
    monkeypatch,
):
    whole = run(planted(True), PROMPTS)
    for name, number in {"FEW": 1, "FIRST": 1, "SAMPLE": 0}.items():
        monkeypatch.setattr(screening, name, number)
    result = run(planted(True), PROMPTS)
    for name in ("first_less", "sinks_more", "best_gamma", "verdict"):
        assert float(result[name][0, 0]) == pytest.approx(float(whole[name][0, 0]), abs=1e-6)
        assert np.isnan(result[name][0, 1])
    # All heads at once are all heads.
    np.testing.assert_allclose(result["sweep"], whole["sweep"], atol=1e-6)
    assert "Ablated were 1 of 2 heads" in result.attrs["note"]
    assert np.isfinite(run(planted(True), PROMPTS, exhaustive=True)["verdict"]).all()


@pytest.mark.requirement("A2")
def test_sinks_in_the_middle_are_calibrated_where_the_first_token_is_not(planted_middle):
    result = planted_middle
    assert float(result["sinks_less"][0, 0]) < -0.01
    # The first token is a word here: less weight on it leaves more for the harmful sink.
    assert float(result["first_less"][0, 0]) > 0.005
    assert result["verdict"].values.tolist() == [[-1, 0]]


@pytest.fixture(scope="module")
def planted_middle():
    return run(planted(True), MIDDLE)


@pytest.mark.requirement("A2")
def test_hidden_sinks_are_scaled_alone_and_the_first_token_is_left(planted_middle):
    def change(model, prompts):
        """Scale <bos> in the middle, and no other key, in L0H0."""
        changes = []
        for ids in prompts:
            edit = ScaleKeys(heads=((0, 0),), keys=(ids.index(0, 1),), factor=0.5)
            changes.append(mean_loss(model, ids, (edit,)) - mean_loss(model, ids))
        return np.mean(changes)

    # The first token is a word, and in so short a text a sink by itself.
    model = planted(True)
    less = {name: float(planted_middle[f"{name}_less"][0, 0]) for name in ("sinks", "hidden")}
    assert less["hidden"] == pytest.approx(change(model, MIDDLE), abs=2e-6)
    assert less["sinks"] - less["hidden"] > 0.005
    # <bos> at the start and in the middle.
    prompts = [[0, *ids] for ids in MIDDLE]
    result = run(model, prompts, epsilon=0.1)
    assert float(result["hidden_less"][0, 0]) == pytest.approx(change(model, prompts), abs=2e-6)
    assert abs(float(result["hidden_less"][0, 0] - result["sinks_less"][0, 0])) > 0.005
    # Where the only sink stands first there is no hidden one to scale.
    first = run(model, PROMPTS)
    assert float(abs(first["hidden_less"]).max()) == 0.0
    assert float(abs(first["sinks_less"]).max()) > 0.005


@pytest.mark.requirement("A5")
@pytest.mark.parametrize("gamma", [0.25, 1.0, 3.0])
def test_weights_follow_the_closed_form(bundled, gamma):
    ids = [[0, *range(20, 50)]]
    edit = ScaleKeys(heads=((1, 3),), keys=(0,), factor=gamma)
    seen = (capture(bundled, ids, stats=("pattern",), edits=some) for some in ((), (edit,)))
    before, after = (each["pattern"].values[0, 1, 3].astype(float) for each in seen)
    scale = np.where(np.arange(len(ids[0])) == 0, gamma, 1.0)
    expected = before * scale / (before * scale).sum(-1, keepdims=True)
    np.testing.assert_allclose(after, expected, atol=1e-6)
    # The ratios of the other weights stay: each is the same multiple of what it was.
    row, first = slice(1, 26), float(before[25, 0])
    others = before[25, row] / (1 + (gamma - 1) * first)
    np.testing.assert_allclose(after[25, row], others, rtol=1e-4, atol=1e-9)


@pytest.mark.requirement("A5")
def test_the_map_is_that_of_one_head_edited_at_a_time(bundled):
    ids = [[0, *range(20, 44)], [0, *range(60, 84)]]
    cap = capture(bundled, ids, stats=("received",))
    result = sink_calibration.run(cap, bundled, gammas="0.1 1 5")

    def change(edit):
        return np.mean(
            [mean_loss(bundled, token, (edit,)) - mean_loss(bundled, token) for token in ids]
        )

    for layer, head in ((0, 2), (3, 7)):
        edit = ScaleKeys(heads=((layer, head),), keys=(0,), factor=0.1)
        expected = change(edit)
        assert float(result["first_less"][layer, head]) == pytest.approx(float(expected), abs=2e-6)
    every = ScaleKeys(
        [(token, two) for token in range(4) for two in range(8)], keys=(0,), factor=5.0
    )
    expected = change(every)
    sweep = result["sweep"].sel(scaled="first token")
    assert float(sweep.sel(gamma=5.0)) == pytest.approx(float(expected), abs=2e-6)
    assert float(sweep.sel(gamma=1.0)) == pytest.approx(0.0, abs=1e-6)


def test_bad_factors_are_refused(random_llama):
    cap = capture(random_llama, PROMPTS, stats=("received",))
    for wrong in ("2 3", "much", "", "0 2", "0.5"):
        check_refusal("gammas", sink_calibration.run, cap, random_llama, gammas=wrong)

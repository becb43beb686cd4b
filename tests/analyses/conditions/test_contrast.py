import copy

import numpy as np
import pytest
import torch
from constructed import HEADS, INDUCTION, KEYS, NAMES, SIZE, TOKEN, VALUES, WORDS, repeated
from refusals import check_refusal
from scipy.stats import ttest_ind, ttest_rel
from word_prompts import Asked, word_prompt

from headscope.analyses._runtime.runner import execute
from headscope.analyses._stats import effect_size
from headscope.analyses.conditions._rare_tokens import expected, rarest
from headscope.kernels.errors import HeadscopeError
from headscope.probes import load_model
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.writing import split

COPYING = {"L3H0", "L3H1", "L3H4", "L3H5", "L3H7"}


def test_effects_and_p_values_are_those_of_scipy():
    generator = np.random.default_rng(0)
    one = generator.normal(0.3, 1, (14, 2, 3))
    other = generator.normal(0, 1, (14, 2, 3))
    for paired, test in ((True, ttest_rel), (False, ttest_ind)):
        result = test(one, other)
        p = effect_size.p_values(one, other, 1e-6, paired=paired)
        np.testing.assert_allclose(p, result.pvalue, rtol=1e-9)
        d = effect_size.cohen(one, other, 1e-6, paired=paired)
        np.testing.assert_allclose(d * np.sqrt(14 if paired else 7), result.statistic, rtol=1e-9)


def test_the_interval_of_an_effect_covers_the_true_one():
    inside = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        first, second = generator.normal(0.8, 1, (40, 1)), generator.normal(0, 1, (40, 1))
        _, low, high = effect_size.intervals(first, second, 0.01, paired=False, seed=seed)
        inside += int(low[0] <= 0.8 <= high[0])
    assert inside >= 51


@pytest.mark.requirement("B6")
def test_the_rate_of_false_discoveries_is_held_among_many_heads():
    generator = np.random.default_rng(1)
    wrong = []
    for _ in range(40):
        first, second = generator.normal(size=(2, 12, 100))
        first[:, :10] += 4
        p = effect_size.adjusted(effect_size.p_values(first, second, 0.01, paired=True))
        assert (p[:10] <= 0.05).mean() > 0.9
        wrong.append((p[10:] <= 0.05).sum() / max((p <= 0.05).sum(), 1))
    assert np.mean(wrong) < 0.08


def test_a_change_alike_on_every_prompt_has_a_finite_effect():
    first, second = np.full((5, 1), 0.9), np.full((5, 1), 0.1)
    assert effect_size.cohen(first, second, 0.01, paired=True)[0] == pytest.approx(80)
    assert effect_size.cohen(first, first, 0.01, paired=True)[0] == 0


@pytest.mark.requirement("B6")
def test_the_planted_head_stands_out_and_what_it_does_in_both_conditions_is_flagged(circuit):
    result = execute("contrast", circuit, task=repeated(n=16, length=8))
    assert result.attrs["heads_by_type"] == {"more evidence in A": ["L1H0"]}
    effect = result["effect"].sel(statistic="evidence").values
    assert effect[INDUCTION] > 5
    assert np.abs(np.delete(effect.ravel(), [3, 4])).max() < 1e-3
    assert result["significance"].sel(statistic="evidence").values[INDUCTION] > 4
    # On the corrupted prompts the head copies the first token, just as surely.
    cost = result["lost"].sel(ablated="heads that stand out in A").values
    assert cost.min() > 1
    assert cost[0] == pytest.approx(cost[1], abs=1e-3)
    assert result.attrs["verdict"] == "disagreement"
    assert result.attrs["note"].startswith("Causal check does not agree")
    assert result.attrs["note"].endswith("; no more than B.")


@pytest.mark.requirement("B6")
@pytest.mark.parametrize(("task", "other"), [("recall", "brackets"), ("induction", "corrupted")])
def test_heads_of_one_condition_hurt_it_more_than_the_other_does(bundled, task, other):
    result = execute("contrast", bundled, task=task, n=16, options={"other": other})
    assert len(set(result.attrs["heads_by_type"]["more evidence in A"]) & COPYING) >= 4
    (own, random), (foreign, _) = result["lost"].values
    assert own > 1.5
    assert own - foreign > 1.0
    assert abs(random) < 0.2
    assert result.attrs["verdict"] == "supported"


def test_conditions_that_do_not_differ_have_no_head(bundled):
    result = execute("contrast", bundled, task="ioi", n=8)
    assert result.attrs["heads_by_type"] == {"more evidence in A": []}
    assert "lost" not in result
    assert result.attrs["verdict"] == "too_few"


@pytest.mark.requirement("B6")
def test_heads_that_stand_out_but_do_nothing_are_flagged(bundled):
    result = execute("contrast", bundled, task="ioi", n=16, options={"other": "recall"})
    assert result.attrs["heads_by_type"]["more evidence in A"]
    assert result.attrs["verdict"] == "disagreement"


def common_and_rare(n: int = 6) -> Task:
    """Two names said over and over, and one word of its own in every prompt."""
    prompts = []
    for number in range(n):
        words = [NAMES[at % 2] for at in range(12)]
        words[3 + number] = [*KEYS, *VALUES][number]
        asked = Asked(11, (NAMES[0],), (NAMES[1],), (3 + number,))
        prompts.append(word_prompt(words, words, [asked]))
    return Task("common", tuple(prompts), "accuracy", 0, "One rare word.")


@pytest.mark.requirement("B6")
def test_a_planted_head_that_attends_to_rare_tokens_is_enriched_and_a_uniform_one_is_not(circuit):
    module = copy.deepcopy(circuit.module)
    with torch.no_grad():
        attention, key = module.transformer.h[0].attn.c_attn, HEADS * SIZE + 2 * SIZE
        attention.bias[2 * SIZE] = 16.0
        rare = torch.tensor([WORDS.index(word) for word in [*KEYS, *VALUES]])
        attention.weight[TOKEN + rare, key] = 1.5
    model = load_model(module, tokenizer=circuit.tokenizer)
    options = {"rarest": 1, "statistics": "rare"}
    result = execute("contrast", model, task=common_and_rare(), options=options)
    mass, times = result["rare_mass"].values, result["rare_enrichment"].values
    assert mass[0, 2] > 0.999
    assert times[0, 2] == pytest.approx(13, abs=0.02)  # one of 13 tokens
    np.testing.assert_allclose(times[1, 1:], 1.0, atol=1e-3)
    assert np.delete(mass.ravel(), 2).max() < 0.5


def test_the_rarest_tokens_of_a_prompt():
    prompts = [[0, 5, 5, 6, 7, 5], [0, 5, 6, 6, 8, 9]]
    assert rarest(prompts, 1) == [[4], [5]]
    assert rarest(prompts, 2) == [[3, 4], [4, 5]]
    assert [len(one) for one in rarest(prompts, 9)] == [3, 3]
    assert expected(4, [1, 2], [0, 2], False).tolist() == [0.5, 0.5]


def test_bad_input_is_refused(bundled, circuit):
    with pytest.raises(HeadscopeError, match="statistics: 'size' is not one of"):
        execute("contrast", bundled, n=4, options={"statistics": "size"})
    with pytest.raises(HeadscopeError, match="statistics: there are none"):
        execute("contrast", bundled, n=4, options={"statistics": " "})
    check_refusal("n", execute, "contrast", bundled, n=2)
    check_refusal("task", execute, "contrast", bundled, n=4, options={"other": "nothing"})
    bare = tuple(
        word_prompt(split(prompt.clean), split(prompt.corrupted), [Asked(3, (KEYS[0],))])
        for prompt in repeated(n=4, length=4).prompts
    )
    with pytest.raises(HeadscopeError, match="name no evidence"):
        execute("contrast", circuit, task=Task("bare", bare, "accuracy", 0, "No evidence."))

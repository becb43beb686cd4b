"""Causal verdicts: one rule for heads and groups of heads, and no share of what is no effect."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from headscope.analyses._runtime.verdict import causal_verdict, compare_shares
from headscope.analyses._stats.effect_size import exceeds_zero

GROUPS = ("the first", "the second")


def verdict(*means: float, prompts: int = 16):
    return compare_shares(np.array(means) * noise(prompts), "the edit", GROUPS)


def noise(prompts: int) -> np.ndarray:
    return 1 + np.random.default_rng(0).uniform(-0.05, 0.05, (prompts, 4))


def test_shares_of_real_effects_are_compared():
    result = verdict(0.1, 1.0, 0.9, 1.0)
    assert result.state == "supported"
    mean = noise(16).mean(0)
    assert f"does {10 * mean[0] / mean[1]:.3g}%" in result.text
    assert verdict(0.9, 1.0, 0.1, 1.0).state == "disagreement"


@pytest.mark.parametrize("fixed", [0.1, 2.0])
def test_nothing_is_a_share_of_no_effect(fixed):
    result = verdict(fixed, 1.0, 0.4, 0.001)
    assert "%" not in result.text
    assert result.state == ("supported" if fixed < 1 else "disagreement")
    assert verdict(fixed, 0.001, 0.4, 1.0).state == "too_few"


@pytest.mark.parametrize("prompts", [1, 2, 15])
def test_few_prompts_give_no_verdict(prompts):
    assert verdict(0.1, 1.0, 0.9, 1.0, prompts=prompts).state == "too_few"
    result = causal_verdict(np.full(prompts, 3.0), "3 nats")
    assert result.state == "too_few"
    assert result.text == f"Too few prompts for a causal check ({prompts} of 16): 3 nats."


def test_two_heads_and_two_groups_are_judged_by_one_t_test():
    over = np.random.default_rng(1).normal([0.6, 0.0, -2.0], 1.0, (24, 3))
    single = ttest_1samp(over, 0).pvalue
    assert exceeds_zero(over).tolist() == [True, False, False]
    assert single[0] < 0.05 < single[1]
    for claimed, state in (([0], "supported"), ([1], "disagreement"), ([2], "disagreement")):
        result = causal_verdict(over, "it is", "; it is not", np.array(claimed))
        assert result.state == state
        assert result.text.endswith("; it is not.") == (state == "disagreement")
    assert causal_verdict(over[:, :2], "it is").state == "disagreement"


def test_a_null_is_called_an_effect_no_more_often_than_stated():
    rng, wrong = np.random.default_rng(2), 0
    for _ in range(400):
        wrong += causal_verdict(rng.normal(size=(16, 1)), "").state == "supported"
    assert wrong / 400 < 0.05


def test_what_was_compared_beside_the_claim_is_corrected_for():
    over = np.random.default_rng(3).normal([0.75, *[0.0] * 200], 1.0, (16, 201))
    assert causal_verdict(over[:, :1], "").state == "supported"
    assert causal_verdict(over, "", claimed=np.array([0])).state == "disagreement"


def test_prompts_that_lack_a_comparison_do_not_count():
    over = np.full((20, 2), 1.0) + np.random.default_rng(4).normal(0, 0.1, (20, 2))
    over[:5, 1] = np.nan
    assert causal_verdict(over[:, 0], "").state == "supported"
    assert causal_verdict(over, "").text.startswith("Too few prompts for a causal check (15 of 16)")

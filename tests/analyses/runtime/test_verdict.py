"""What part of an ablation an edit does, where the ablation does anything."""

import numpy as np
import pytest

from headscope.analyses._runtime.verdict import compare_shares

GROUPS = ("the first", "the second")


def verdict(*means: float):
    noise = 1 + np.random.default_rng(0).uniform(-0.05, 0.05, (6, 4))
    return compare_shares(np.array(means) * noise, "the edit", GROUPS, 0)


def test_shares_of_real_effects_are_compared():
    found = verdict(0.1, 1.0, 0.9, 1.0)
    assert found.state == "supported"
    assert "does 10" in found.text
    assert verdict(0.9, 1.0, 0.1, 1.0).state == "disagreement"


@pytest.mark.parametrize("fixed", [0.1, 2.0])
def test_nothing_is_a_share_of_no_effect(fixed):
    found = verdict(fixed, 1.0, 0.4, 0.001)
    assert "%" not in found.text
    assert found.state == ("supported" if fixed < 1 else "disagreement")
    assert verdict(fixed, 0.001, 0.4, 1.0).state == "too_few"


def test_one_prompt_says_nothing():
    assert compare_shares(np.ones((1, 4)), "the edit", GROUPS, 0).state == "too_few"

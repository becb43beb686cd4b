"""How many facts a model holds is found on other prompts than the analysed ones, and is stated."""

import json

import numpy as np
import pytest
from scipy.stats import binomtest

from headscope.analyses._measurements import recall_capacity
from headscope.analyses._runtime.runner import execute
from headscope.probes import load_model
from headscope.probes.prompts import tasks


@pytest.fixture(scope="module")
def natural():
    """A model that is asked in natural register, and knows Python alone."""
    return load_model("headscope/bundled-python")


@pytest.mark.parametrize(
    ("hits", "held"),
    [
        ({2: 30, 3: 20, 4: 12}, 3),
        ({2: 32, 3: 32, 4: 32, 6: 32, 8: 32}, 8),
        # 20 of 32 is more than a half, but its interval reaches chance: one of two facts.
        ({2: 20}, 0),
        # Above chance, but not half of them.
        ({2: 32, 3: 32, 4: 15}, 3),
    ],
)
def test_the_largest_number_above_chance_is_held(hits, held, natural, monkeypatch):
    drawn = []

    def answered(model, task, metric):
        assert (metric, len(task)) == ("accuracy", 32)
        assert {len(prompt.questions) for prompt in task.prompts} == {1}
        [pairs] = {len(prompt.roles["key"]) for prompt in task.prompts}
        drawn.append((pairs, task.seed))
        return (np.arange(32) < hits[pairs]).astype(float)

    monkeypatch.setattr(recall_capacity, "evaluate", answered)
    monkeypatch.setattr(recall_capacity, "_FOUND", {})
    task, result = recall_capacity.draw(natural, 3, seed=5)
    assert result.pairs == held
    assert [pairs for pairs, _ in drawn] == list(hits)
    assert 5 not in {seed for _, seed in drawn}
    assert {len(prompt.roles["key"]) for prompt in task.prompts} == {held or 2}
    for pairs, count in hits.items():
        ends = binomtest(count, 32).proportion_ci(method="wilson")
        assert result.accuracy[pairs] == (count / 32, ends.low, ends.high)


def test_a_model_that_holds_nothing_is_reported_and_nothing_is_concluded(natural):
    result = execute("query_focus", natural, n=4, options={"draws": 1, "best": 1})
    assert result.attrs["verdict"] == "too_few"
    start = "The model is not shown to hold facts of recall: it answers 0 ("
    assert result.attrs["note"].startswith(start)
    assert "not conclusive" in result.attrs["note"]
    assert result.attrs["recall_pairs"] == 2
    assert list(result.attrs["recall_calibration"]) == ["2"]
    json.dumps(result.attrs)


def test_plain_prompts_stay_what_they_were(bundled):
    task, result = recall_capacity.draw(bundled, 4, seed=3)
    assert result is None
    assert task == tasks.make("recall", bundled.tokenizer, 4, 3)

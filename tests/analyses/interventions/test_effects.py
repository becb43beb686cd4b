"""Effects are measured once, kept on disk, and never taken for those of something else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from constructed import random_llama as another_llama
from constructed import repeated

from headscope.analyses._interventions import ablation, effects
from headscope.analyses._interventions.effects import EffectsTable, sharing

METRIC = "logit_difference"


@pytest.fixture(scope="module")
def task(random_llama):
    return ablation.encode_task(random_llama, repeated(n=3, length=4))


@pytest.fixture
def measured(monkeypatch):
    """How many sets of heads were ablated, by call."""
    calls = []
    sweep = ablation.edit_sets

    def counted(model, task, measures, sets, edit):
        calls.append((len(task), len(sets)))
        return sweep(model, task, measures, sets, edit)

    monkeypatch.setattr(ablation, "edit_sets", counted)
    return calls


def test_an_effect_is_measured_once_and_outlives_the_process(
    tmp_path, random_llama, task, measured
):
    alone = ablation.ablate_each_head(random_llama, task, METRIC)
    with sharing(EffectsTable(tmp_path)):
        first = ablation.ablate_each_head(random_llama, task, METRIC)
        again = ablation.ablate_each_head(random_llama, task, METRIC)
    with sharing(EffectsTable(tmp_path)):
        later = ablation.ablate_each_head(random_llama, task, METRIC)
    assert measured == [(3, 8), (3, 8)]
    for each in (first, again, later):
        assert np.array_equal(alone, each)


def test_other_prompts_and_heads_alone_are_measured_anew(random_llama, task, measured):
    whole = ablation.ablate_each_head(random_llama, task, METRIC)
    heads = torch.zeros(2, 4, dtype=torch.bool)
    heads[1, 2] = heads[0, 3] = True
    with sharing(EffectsTable()):
        part = ablation.ablate_each_head(random_llama, task.part([0, 2]), METRIC, heads=heads)
        rest = ablation.ablate_each_head(random_llama, task, METRIC)
    assert np.allclose(part[:, heads.numpy()], whole[[0, 2]][:, heads.numpy()], atol=1e-6)
    assert np.isnan(part[:, ~heads.numpy()]).all()
    assert np.allclose(rest, whole, atol=1e-6)
    # The third call leaves out nothing: prompt 1 lacks all heads, the others six.
    assert measured == [(3, 8), (2, 2), (3, 8)]


@pytest.mark.parametrize(
    ("changed", "value"),
    [("metric", "accuracy"), ("values", torch.zeros(2, 4, 8)), ("first", 1), ("values", None)],
)
def test_what_differs_is_not_taken_for_known(random_llama, task, measured, changed, value):
    asked = {"metric": METRIC, "values": torch.ones(2, 4, 8), "first": 0}
    with sharing(EffectsTable()):
        ablation.ablate_each_head(random_llama, task, **asked)
        ablation.ablate_each_head(random_llama, task, **asked | {changed: value})
    assert len(measured) == 2


def test_other_questions_and_another_model_are_something_else(random_llama, task, measured):
    shorter = replace(task, questions=tuple(asked[1:] for asked in task.questions))
    with sharing(EffectsTable()):
        ablation.ablate_each_head(random_llama, task, METRIC)
        ablation.ablate_each_head(random_llama, shorter, METRIC)
        ablation.ablate_each_head(another_llama(seed=1), task, METRIC)
    assert len(measured) == 3


def test_an_interrupted_sweep_goes_on_where_it_was(
    tmp_path, random_llama, task, measured, monkeypatch
):
    monkeypatch.setattr(effects, "TOGETHER", 3)
    sweep = ablation.edit_sets

    def broken(*arguments):
        if len(measured) == 2:
            raise KeyboardInterrupt
        return sweep(*arguments)

    monkeypatch.setattr(ablation, "edit_sets", broken)
    with pytest.raises(KeyboardInterrupt), sharing(EffectsTable(tmp_path)):
        ablation.ablate_each_head(random_llama, task, METRIC)
    monkeypatch.setattr(ablation, "edit_sets", sweep)
    with sharing(EffectsTable(tmp_path)):
        whole = ablation.ablate_each_head(random_llama, task, METRIC)
    assert measured == [(3, 3), (3, 3), (3, 2)]
    assert np.allclose(whole, ablation.ablate_each_head(random_llama, task, METRIC), atol=1e-6)

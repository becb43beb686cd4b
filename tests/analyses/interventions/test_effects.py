"""Effects are measured once, kept on disk, and never taken for those of something else."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from constructed import random_llama as another_llama
from constructed import repeated
from refusals import check_refusal
from scipy.stats import spearmanr

from headscope.analyses._interventions import ablation, dtype_agreement, effects
from headscope.analyses._interventions.effects import EffectsTable, sharing
from headscope.probes.models import reduced_precision
from headscope.probes.models.reduced_precision import in_bfloat16

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


def test_effects_in_bfloat16_stand_beside_a_sample_in_float32(tmp_path, random_llama, task):
    clean = ablation.evaluate(random_llama, task, (), METRIC)
    alone = clean[:, None, None] - ablation.ablate_each_head(random_llama, task, METRIC)
    for _ in range(2):
        with sharing(EffectsTable(tmp_path, "bfloat16")) as table:
            low = clean[:, None, None] - ablation.ablate_each_head(random_llama, task, METRIC)
        [agreement] = table.agreements.values()
        assert 0 < np.abs(low - alone).max() < 0.05 * np.abs(alone).max()
        means = [each.mean(0).ravel() for each in (low, alone)]
        assert agreement.rho == pytest.approx(spearmanr(*map(np.abs, means)).statistic)
        assert agreement.largest == pytest.approx(np.abs(means[0] - means[1]).max(), rel=1e-3)
        assert (agreement.sets, agreement.prompts) == (8, 3)
    with sharing(EffectsTable(tmp_path)):
        whole = ablation.ablate_each_head(random_llama, task, METRIC)
    np.testing.assert_allclose(clean[:, None, None] - whole, alone, atol=1e-6)


def test_a_format_that_changes_the_effects_is_called_a_disagreement(
    random_llama, task, monkeypatch
):
    monkeypatch.setattr(reduced_precision, "in_bfloat16", lambda model: another_llama(seed=1))
    result = xr.Dataset(attrs={"verdict": "supported", "note": "It is."})
    with sharing(EffectsTable(dtype="bfloat16")) as table:
        ablation.ablate_each_head(random_llama, task, METRIC)
    dtype_agreement.state(result, list(table.agreements.values()))
    assert result.attrs["verdict"] == "disagreement"
    assert "It is. Ablations in bfloat16 do not agree with float32; 8 sets" in result.attrs["note"]


def test_other_formats_and_models_that_are_reduced_already_are_refused(random_llama, task):
    check_refusal("dtype", EffectsTable, dtype="float16")
    low = replace(random_llama, module=deepcopy(random_llama.module).to(torch.bfloat16))
    check_refusal("dtype", in_bfloat16, low)

"""A screen keeps the heads of a planted circuit, and says what it may have missed."""

import numpy as np
import pytest
import torch
from constructed import INDUCTION, PREVIOUS, repeated
from scipy.stats import beta

from headscope.analyses import atlas, contributions, importance, pruning, sae_circuits
from headscope.analyses._interventions import head_gradients, screening
from headscope.analyses._interventions.ablation import encode_task
from headscope.analyses._interventions.effects import EffectsTable, sharing
from headscope.kernels.formatting import percent
from headscope.probes import capture
from headscope.probes.attention import work


@pytest.fixture
def few(monkeypatch):
    """Make eight heads many: two of each ranking are ablated, and two of the others."""
    for name, value in (("FEW", 4), ("FIRST", 2), ("SAMPLE", 2)):
        monkeypatch.setattr(screening, name, value)


@pytest.mark.usefixtures("few")
def test_the_heads_of_a_circuit_are_ablated_and_others_are_drawn(circuit):
    task = encode_task(circuit, repeated(n=4))
    chosen = screening.screen(circuit, task, "logit_difference")
    assert chosen.heads[PREVIOUS]
    assert chosen.heads[INDUCTION]
    assert not chosen.sample[PREVIOUS]
    assert not chosen.sample[INDUCTION]
    assert int(chosen.heads.sum()) == 4
    assert int(chosen.sample.sum()) == 2
    drawn = {
        tuple(screening.screen(circuit, task, "logit_difference", seed=seed).sample.flatten())
        for seed in range(8)
    }
    assert len(drawn) > 1
    # None of two: the exact upper end is 1 − 0.025^(1/2).
    output = chosen.missed(np.zeros((2, 4), dtype=bool))
    assert f"up to {percent(beta.ppf(0.975, 1, 2))} may, too" in output
    both = chosen.missed(np.ones((2, 4), dtype=bool))
    assert both.split(". ")[1].startswith("2 of the 2 lie above the null")


@pytest.mark.usefixtures("few")
def test_importance_names_the_circuit_from_its_screen(circuit):
    task = repeated(n=16)
    captured = capture(circuit, task, stats=(), keep=("z",))
    quick = importance.run(captured, circuit, task, metric="logit_difference")
    whole = importance.run(captured, circuit, task, metric="logit_difference", exhaustive=True)
    assert set(quick.attrs["important_heads"]) == set(whole.attrs["important_heads"])
    for name in ("zero_ablation", "mean_ablation", "resample_ablation", "sink_free_ablation"):
        ablated = ~np.isnan(quick[name].values)
        assert 4 <= ablated.sum() < 8
        assert np.allclose(quick[name].values[ablated], whole[name].values[ablated], atol=1e-5)
        assert "of 8 heads" in quick[name].attrs["convention"]
    assert not np.isnan(quick["gate_gradient"].values).any()
    assert "Ablated were" in quick.attrs["note"]
    assert "Ablated were" not in whole.attrs["note"]


def test_how_many_heads_are_ablated_does_not_change_what_a_score_means():
    small, large, every = (torch.arange(8).reshape(2, 4) < count for count in (4, 6, 8))
    drawn = torch.arange(8).reshape(2, 4) == 3
    conventions = [
        f"intact − ablated, {screening.Screen(heads, drawn, 8).convention}; 4 prompts of ioi"
        for heads in (small, large, every)
    ]
    assert len({*conventions}) == 3
    stripped = {screening.without_counts(convention) for convention in conventions}
    assert stripped == {"intact − ablated, heads; 4 prompts of ioi"}


def test_a_small_model_has_all_heads_ablated(circuit):
    task = encode_task(circuit, repeated(n=2))
    chosen = screening.screen(circuit, task, "logit_difference")
    assert chosen.complete
    assert chosen.missed(np.ones((2, 4), dtype=bool)) == ""


@pytest.mark.usefixtures("few")
def test_pruning_finds_the_circuit_without_ranking_every_head(circuit):
    task = repeated(n=6, length=6)
    captured = capture(circuit, task, stats=(), keep=("z",))
    spent = []
    for every in (False, True):
        counted = []
        with work.counting(lambda count, _, counted=counted: counted.append(count)):
            result = pruning.run(captured, circuit, task, share=0.0, orders=2, exhaustive=every)
        spent.append(sum(counted))
        assert set(result.attrs["smallest_set"]) == {"L0H0", "L1H0"}
        assert ("2 more of 8 heads" in result.attrs["convention"]) != every
        assert np.isnan(result["only_head"].values).sum() == (0 if every else 2)
    assert spent[0] < spent[1]


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("analysis", "name", "options"),
    [
        (atlas, "lost_metric", {}),
        (contributions, "loss_ablation", {}),
        (sae_circuits, "ablation", {"epochs": 2, "trials": 2, "threshold": 0.01}),
    ],
)
def test_what_is_not_ablated_is_missing_and_the_rest_as_exhaustive(
    random_llama, analysis, name, options
):
    task = repeated(n=4, length=6)
    captured = capture(random_llama, task, stats=analysis.NEEDS, keep=analysis.KEEP)
    given = (captured, random_llama, task)[: 2 if analysis is contributions else 3]
    quick, whole = (analysis.run(*given, **options, exhaustive=each) for each in (False, True))
    tried = ~np.isnan(quick[name].values)
    assert 4 <= tried.sum() < 8
    assert not np.isnan(whole[name].values).any()
    assert np.allclose(quick[name].values[tried], whole[name].values[tried], atol=1e-5)
    assert f"{tried.sum()} of 8 heads" in quick[name].attrs["convention"]
    assert "all 8 heads" in whole[name].attrs["convention"]


@pytest.mark.usefixtures("few")
def test_a_drawn_head_stands_for_those_that_are_not(circuit):
    task = encode_task(circuit, repeated(n=4))
    chosen = screening.screen(circuit, task, "logit_difference")
    # Two heads stand out, and two stand for the six others.
    assert sorted(chosen.weights[chosen.heads.numpy()].tolist()) == [1, 1, 3, 3]
    assert np.isnan(chosen.weights[~chosen.heads.numpy()]).all()


@pytest.mark.usefixtures("few")
def test_the_screens_of_a_run_compute_a_gradient_once(circuit):
    task = encode_task(circuit, repeated(n=4))
    counted = []
    with sharing(EffectsTable()), work.counting(lambda count, _: counted.append(count)):
        screening.screen(circuit, task, "logit_difference")
        tokens = sum(counted)
        screening.screen(circuit, task.part([0, 2]), "logit_difference")
        slope = head_gradients.gate_gradient(circuit, task, "logit_difference")
    assert sum(counted) == tokens > 0
    assert np.array_equal(slope, head_gradients.gate_gradient(circuit, task, "logit_difference"))

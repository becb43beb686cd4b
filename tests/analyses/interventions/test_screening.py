"""A screen keeps the heads of a planted circuit, and says what it may have missed."""

import numpy as np
import pytest
from constructed import INDUCTION, PREVIOUS, repeated
from scipy.stats import beta

from headscope.analyses import importance
from headscope.analyses._interventions import screening
from headscope.analyses._interventions.ablation import encode_task
from headscope.probes import capture


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
    said = chosen.missed(np.zeros((2, 4), dtype=bool))
    assert f"up to {beta.ppf(0.975, 1, 2):.0%} may, too" in said
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


def test_a_small_model_has_all_heads_ablated(circuit):
    task = encode_task(circuit, repeated(n=2))
    chosen = screening.screen(circuit, task, "logit_difference")
    assert chosen.complete
    assert chosen.missed(np.ones((2, 4), dtype=bool)) == ""

"""Costs that are stated before the work are those that are counted in it."""

import pytest

from headscope import analyses
from headscope.analyses._interventions import screening
from headscope.analyses._runtime import cost
from headscope.analyses._runtime.runner import execute
from headscope.probes import tasks
from headscope.probes.attention import work

# Of every kind: reads the capture, checks it causally, ablates every head, patches both ways.
COUNTED = ("entropy", "span", "head_types", "vocabulary", "patching", "logit_attribution")


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("n", [3, 6])
def test_passes_are_those_of_the_run(bundled, name, n):
    prompts = tasks.make("story", bundled.tokenizer, n)
    # The first capture of a model checks it, which is no work of the analysis.
    execute("entropy", bundled, prompts)
    total = []
    with work.counting(total.append):
        execute(name, bundled, prompts, n=n)
    [stated] = cost.estimate([name], bundled, prompts, n=n)
    # An analysis of a run's own prompts finds them captured.
    captured = 0 if hasattr(analyses.load(name), "TASK") else 1
    counted = sum(total) / bundled.layers / stated.tokens - captured
    assert stated.passes == pytest.approx(counted, rel=0.3, abs=0.5)


def test_every_count_is_of_an_analysis():
    assert set(cost._table()) <= set(analyses.names())
    assert len(cost._table()) >= len(analyses.names()) - 3


def test_a_pass_with_a_gradient_counts_three_times(bundled):
    from headscope.analyses._interventions import ablation, head_gradients

    task = ablation.encode_task(bundled, tasks.make("ioi", bundled.tokenizer, 2))
    plain, sloped = [], []
    with work.counting(plain.append):
        ablation.evaluate(bundled, task)
    with work.counting(sloped.append):
        head_gradients.gate_gradient(bundled, task, "logit_difference")
    # The first layer's queries hang on no gate.
    assert sum(plain) < sum(sloped) <= 3 * sum(plain)
    assert sloped[-1] == 3 * plain[-1]


def test_a_screen_costs_less_than_all_heads_and_is_said_so(bundled, monkeypatch):
    whole = cost.passes("vocabulary", bundled, 4, {})
    monkeypatch.setattr(cost, "FEW", 8)
    monkeypatch.setattr(cost, "FIRST", 4)
    monkeypatch.setattr(cost, "SAMPLE", 2)
    assert cost.passes("vocabulary", bundled, 4, {}) < whole
    assert cost.passes("vocabulary", bundled, 4, {"exhaustive": "true"}) == whole
    assert screening.FEW == 64
    [stated] = cost.estimate(["vocabulary"], bundled, None, n=2)
    assert str(stated).startswith(f"vocabulary: runs the model {stated.passes:.3g} times over")

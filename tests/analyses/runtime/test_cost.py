"""Costs that are stated before the work are those that are counted in it."""

from dataclasses import replace

import pytest

from headscope import analyses
from headscope.analyses._interventions import ablation, head_gradients, screening
from headscope.analyses._runtime import cost, expected_work, pass_costs
from headscope.analyses._runtime.inputs import PromptSets
from headscope.analyses._runtime.runner import execute
from headscope.probes import capture, plan, tasks
from headscope.probes.attention import work

# Of every kind: reads the capture, checks it causally, draws prompts of its own, ablates every
# head, patches both ways.
COUNTED = ("entropy", "span", "sink_controls", "head_types", "vocabulary", "patching")


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("n", [3, 6])
def test_passes_are_those_of_the_run(bundled, name, n):
    prompts = tasks.make("story", bundled.tokenizer, n)
    # The first capture of a model checks it, which is no work of the analysis.
    execute("entropy", bundled, prompts)
    [stated] = cost.estimate([name], bundled, prompts, n=n)
    total = []
    with work.counting(lambda *layer: total.append(work.weight(*layer))):
        execute(name, bundled, prompts, n=n)
    counted = sum(total) / bundled.layers / stated.tokens
    assert stated.passes == pytest.approx(counted, rel=0.3, abs=0.5)


@pytest.mark.parametrize(
    ("name", "lines", "options"),
    [
        ("faithfulness", 1, {"other": "", "steps": 2}),
        ("faithfulness", 8, {"other": "", "steps": 2, "draws": 2}),
        ("rollout", 1, {"substitutes": 12}),
    ],
)
def test_replaced_tokens_are_counted_by_length_and_options(bundled, name, lines, options):
    task = tasks.make("story", bundled.tokenizer, 2, lines=lines)
    execute("entropy", bundled, task)
    [stated] = cost.estimate([name], bundled, None, task=task, options={name: options})
    total = []
    with work.counting(lambda *layer: total.append(work.weight(*layer))):
        execute(name, bundled, None, task=task, options=options)
    counted = sum(total) / bundled.layers / stated.tokens
    assert stated.passes == pytest.approx(counted, rel=0.3)


def test_prompts_are_captured_once_for_all_that_read_them(bundled):
    prompts = tasks.make("story", bundled.tokenizer, 3)
    first, second = cost.estimate(["entropy", "sinks"], bundled, prompts)
    assert (first.passes, second.passes) == (1, 0)
    held = capture(bundled, prompts, stats=analyses.load("entropy").NEEDS)
    [known] = cost.estimate(["entropy"], bundled, prompts, capture=held)
    assert known.passes == 0
    assert str(known).startswith("entropy: reads the capture, ")


def test_every_count_is_of_an_analysis():
    assert set(expected_work.rows()) <= set(analyses.names())
    assert len(expected_work.rows()) >= len(analyses.names()) - 3


def test_a_pass_with_a_gradient_counts_three_times(bundled):
    task = ablation.encode_task(bundled, tasks.make("ioi", bundled.tokenizer, 2))
    plain, sloped = [], []
    with work.counting(lambda *layer: plain.append(work.weight(*layer))):
        ablation.evaluate(bundled, task)
        with work.counting(lambda *layer: sloped.append(work.weight(*layer))):
            head_gradients.gate_gradient(bundled, task, "logit_difference")
    whole = sum(plain) - sum(sloped)
    # The first layer's queries hang on no gate.
    assert whole < sum(sloped) <= 3 * whole
    assert sloped[-1] == 3 * plain[0]


def test_a_screen_costs_less_than_all_heads_and_is_reported(bundled, monkeypatch):
    def passes(**options):
        sets = PromptSets(bundled, None, None, None, 4, 0)
        return expected_work.expect("vocabulary", sets, options).passes

    whole = passes()
    monkeypatch.setattr(expected_work, "FEW", 8)
    monkeypatch.setattr(expected_work, "FIRST", 4)
    monkeypatch.setattr(expected_work, "SAMPLE", 2)
    assert passes() < whole
    assert passes(exhaustive="true") == whole
    assert screening.FEW == 64
    [stated] = cost.estimate(["vocabulary"], bundled, None, n=2)
    assert str(stated).startswith(f"vocabulary: runs the model {stated.passes:.3g} times over")


def test_small_passes_cost_more_seconds_a_token_and_logits_are_counted():
    # A millisecond whatever the tokens, and a tenth of one for each.
    costs = pass_costs.PassCosts((10, 20), (2e-3, 3e-3), 1e-2, sloped=2.0, sloped_bytes=1)
    expected = expected_work.Expected([10, 30], 5, 4.0, 1.0, 200.0, 7.0, 1.0)
    # One plain pass and one with a gradient, of 40 tokens in 5 layers, at 1.5 of a plain one.
    seconds = 1.5 * (200 * 1e-3 + 2 * 40 * 5 * 1e-4) + 7 * 1e-2
    assert expected.seconds(costs) == pytest.approx(seconds)
    assert expected.total(None) == 4 * 40 * 5
    beside = replace(expected, rest=seconds / 1e-3)  # as long again
    assert beside.seconds(costs) == pytest.approx(2 * seconds)
    assert beside.total(costs) == pytest.approx(2 * expected.total(costs))


def test_bytes_are_those_of_the_capture_and_of_its_pass(bundled):
    prompts = tasks.make("story", bundled.tokenizer, 4)
    [stated] = cost.estimate(["entropy"], bundled, prompts)
    needed = plan(bundled, prompts, stats=analyses.load("entropy").NEEDS)
    assert stated.captured == needed.statistics
    # Every prompt has its own length, so that the largest pass is that of the longest.
    assert stated.memory == pytest.approx(needed.passing, rel=0.01)

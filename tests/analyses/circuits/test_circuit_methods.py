"""Methods that find circuits, against circuits that are known."""

from dataclasses import replace

import numpy as np
import pytest
from constructed import repeated

from headscope.analyses import circuit_methods
from headscope.analyses._interventions import screening
from headscope.analyses._interventions.ablation import encode_task
from headscope.analyses.circuits import _circuit_methods as methods
from headscope.analyses.circuits import _circuit_truth
from headscope.analyses.circuits._circuit_truth import constructed_truth, patched_truth
from headscope.kernels.errors import NotApplicable
from headscope.probes import capture, constructed
from headscope.probes.constructed import known_circuit

IOI = "headscope/constructed-ioi"
CAUSAL = ("patching", "ACDC")


def turned(question):
    """A question whose right answer is the wrong one."""
    return replace(question, answers=question.wrong, wrong=question.answers)


@pytest.mark.requirement("E1", "E3")
@pytest.mark.parametrize(
    "name",
    [
        IOI,
        "headscope/constructed-induction",
        pytest.param("headscope/constructed-docstring", marks=pytest.mark.slow),
        pytest.param("headscope/constructed-greater-than", marks=pytest.mark.slow),
    ],
)
def test_methods_that_follow_the_metric_find_every_known_circuit(name):
    trials = circuit_methods.measure_constructed(name, 64, 1, 0).trials
    for method in (*CAUSAL, "EAP-IG"):
        assert (trials[method] == 1).all(), method
    assert (trials["attribution"][:, 0] == 1).all()
    # What reads nothing but the outputs does not.
    for method in ("no SAE", "mean difference"):
        assert trials[method][:, 0].mean() < 0.95, method


@pytest.mark.parametrize("name", constructed.names())
def test_patching_gives_the_truth_that_is_built_in(name):
    circuit = known_circuit.load(name, 16)
    task = encode_task(circuit.model, circuit.task)
    patched, built = patched_truth(circuit.model, task, 0.01, 0.01), constructed_truth(circuit)
    assert (patched.heads == built.heads).all()
    assert (patched.edges == built.edges).all()
    linked = known_circuit.linked_heads(name, circuit.task.name)
    assert built.edges.sum() == len(linked)


def test_of_many_heads_some_pairs_are_patched_and_the_drawn_ones_stand_for_the_others(monkeypatch):
    for name, number in {"FEW": 0, "FIRST": 9, "SAMPLE": 2}.items():
        monkeypatch.setattr(screening, name, number)
    monkeypatch.setattr(_circuit_truth, "FIRST_PAIRS", 16)
    monkeypatch.setattr(_circuit_truth, "DRAWN_PAIRS", 8)
    circuit = known_circuit.load(IOI, 16)
    task = encode_task(circuit.model, circuit.task)
    patched, built = patched_truth(circuit.model, task, 0.01, 0.01), constructed_truth(circuit)
    tried = np.isfinite(patched.edge_weights)
    assert 16 + 8 <= tried.sum() <= 32 + 8 < len(tried)
    assert patched.edge_weights[tried].sum() == pytest.approx(len(tried))
    # Either ranking has the true ones among its first.
    assert (patched.edges == built.edges).all()
    assert f"{tried.sum()} of {len(tried)} pairs" in patched.criterion


def test_scores_at_random_are_at_chance_and_a_refusal_is_kept(monkeypatch):
    def score_by_chance(draw):
        generator = np.random.default_rng(draw.seed)
        yield "chance", (generator.random(draw.truth.heads.size), generator.random(len(draw.pairs)))

    def score_by_oracle(draw):
        yield "oracle", (draw.truth.heads.ravel().astype(float), None)

    def score_by_nothing(draw):
        raise NotApplicable("model: not this one")
        yield

    monkeypatch.setattr(methods, "METHODS", [score_by_chance, score_by_oracle, score_by_nothing])
    circuit = known_circuit.load(IOI, 48)
    task = encode_task(circuit.model, circuit.task)
    case = circuit_methods.measure(circuit.model, task, constructed_truth(circuit), 12, 0)
    assert case.trials["chance"].mean(0) == pytest.approx(0.5, abs=0.15)
    assert (case.trials["oracle"][:, 0] == 1).all()
    assert np.isnan(case.trials["oracle"][:, 1]).all()
    assert dict(case.refused) == {"nothing": "model: not this one"}
    assert case.beats("oracle", "chance")
    assert not case.beats("chance", "oracle")


def test_a_task_that_the_model_does_not_do_has_no_circuit(circuit):
    task = repeated(n=48, length=6)
    swapped = replace(
        task,
        metric="logit_difference",
        prompts=tuple(
            replace(prompt, questions=(turned(prompt.questions[0]),)) for prompt in task.prompts
        ),
    )
    cap = capture(circuit, swapped, stats=())
    result = circuit_methods.run(cap, circuit, swapped, known=False, trials=2, truth_prompts=4)
    assert result.attrs["verdict"] == "too_few"
    assert np.isnan(result["node_auc"]).all()
    assert result["true_heads"].item() == 0


def test_too_few_prompts_are_refused_with_the_number_needed(circuit):
    task = repeated(n=18, length=6)
    with pytest.raises(
        NotApplicable, match="18 prompts, of which 16 are patched; 5 trials need 21 or more"
    ):
        circuit_methods.run(capture(circuit, task, stats=()), circuit, task)


def test_edges_that_cannot_be_patched_are_missing_and_the_reason_is_reported(monkeypatch):
    def refuse(*arguments):
        raise NotApplicable("model: no edges here")

    monkeypatch.setattr(_circuit_truth, "patch_pairs", refuse)
    circuit = known_circuit.load(IOI, 8)
    truth = patched_truth(circuit.model, encode_task(circuit.model, circuit.task), 0.01, 0.01)
    heads, edges = truth.counts()
    assert heads == len(circuit.heads)
    assert np.isnan(edges)
    assert "no edges here" in truth.criterion

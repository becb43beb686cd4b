"""Edges of known circuits: found by patching and ACDC, estimated by gradients."""

from functools import cache

import numpy as np
import pytest
import torch
from constructed import repeated

from headscope.analyses._interventions.ablation import encode_task
from headscope.analyses._interventions.edge_effects import edge_effects, edge_scores
from headscope.analyses._interventions.edge_graph import EdgeGraph
from headscope.analyses._interventions.edge_patching import patching
from headscope.analyses._runtime.runner import execute
from headscope.analyses._stats.classification import auroc
from headscope.analyses.circuits import _circuit_metrics
from headscope.analyses.circuits._acdc import discover
from headscope.analyses.circuits._edge_order import circuit as circuit_of
from headscope.analyses.circuits._edge_order import greedy_order
from headscope.analyses.comparison import from_result
from headscope.probes import constructed
from headscope.probes.attention.forward import logits
from headscope.probes.constructed import known_circuit

NAMES = constructed.names()


@cache
def known(name):
    return known_circuit.load(name, n=8)


@cache
def scored(name, method):
    """The edges of a constructed model, and their scores by gradients."""
    held = known(name)
    return edge_scores(held.model, encode_task(held.model, held.task), held.task.metric, method, 5)


def truth(name):
    """The true edges (target, source)."""
    graph, _ = scored(name, "eap")
    return graph.mask(
        f"{edge.source}->{edge.target}{'.' if edge.input else ''}{edge.input}"
        for edge in known(name).edges
    )


def recovered_auc(name, scores):
    graph, _ = scored(name, "eap")
    strength = np.abs(scores[graph.edges])
    return auroc(truth(name)[graph.edges], strength, np.zeros(len(strength)))[0]


@pytest.mark.requirement("E3")
@pytest.mark.parametrize("name", NAMES)
def test_patching_finds_the_true_edges_and_no_other(name):
    held, (graph, _) = known(name), scored(name, "eap")
    edges = list(zip(*map(np.ndarray.tolist, graph.edges.nonzero()), strict=True))
    task = encode_task(held.model, held.task)
    effect = edge_effects(held.model, task, held.task.metric, edges).mean(0)
    moved = np.zeros(graph.edges.shape)
    moved[graph.edges] = effect
    assert recovered_auc(name, moved) == 1.0
    assert np.abs(moved[graph.edges & ~truth(name)]).max() < 1e-4
    shuffled = np.zeros(graph.edges.shape)
    shuffled[graph.edges] = np.random.default_rng(0).permutation(effect)
    assert recovered_auc(name, shuffled) < 0.8


@pytest.mark.requirement("E3")
@pytest.mark.parametrize("name", NAMES)
def test_acdc_leaves_the_true_edges_and_no_other(name):
    held = known(name)
    left = discover(held.model, encode_task(held.model, held.task), 1e-5)
    assert (left == truth(name)).all()


def test_acdc_tries_one_edge_after_another(circuit):
    """Against the loop as published: one edge at a time, each by a pass of its own."""
    task = encode_task(circuit, repeated(n=2, length=4))
    threshold = 1e-3
    with patching(circuit, task) as split:
        [(_, run)] = split.batches()
        graph = split.graph
        clean = run.clean_logits.double().log_softmax(-1)

        def divergence(removed):
            logits = run.logits(torch.from_numpy(removed)[None]).double().log_softmax(-1)
            return float((clean.exp() * (clean - logits)).sum(-1).mean())

        removed, level = graph.edges & False, 0.0
        for target in reversed(range(len(graph.targets))):
            for source in reversed(range(graph.visible[target])):
                removed[target, source] = True
                rises = divergence(removed) - level
                if rises < threshold:
                    level += rises
                else:
                    removed[target, source] = False
    kept = graph.reduced(graph.edges & ~removed)
    assert 0 < kept.sum() < 20
    assert (discover(circuit, task, threshold) == kept).all()


# AUC that gradients reach where attention is saturated: EAP, and EAP-IG of 5 steps over inputs and
# over activations.
GRADIENTS = ("eap", "eap_ig", "eap_ig_activations")
REACHED = {
    "docstring": (1, 1, 1), "greater-than": (1, 1, 1), "induction": (1, 1, 1), "ioi": (0.976, 1, 1),
}  # fmt: skip


@pytest.mark.requirement("E3")
@pytest.mark.parametrize("name", NAMES)
def test_gradients_find_the_edges_as_far_as_saturation_lets_them(name):
    reached = [recovered_auc(name, scored(name, method)[1].mean(0)) for method in GRADIENTS]
    assert reached == pytest.approx(REACHED[name.rpartition("constructed-")[2]], abs=0.01)


@pytest.mark.requirement("E3")
@pytest.mark.parametrize("method", ["eap_ig", "acdc"])
def test_the_known_circuit_is_faithful_complete_and_needed_and_random_ones_are_not(method):
    held = known_circuit.load("headscope/constructed-ioi", n=32)
    options = {"method": method, "threshold": 1e-6, "faithful": 0.95, "minimal": 60}
    result = execute("edge_circuits", held.model, task=held.task, options=options)
    own, random = result["faithfulness"].values
    rest, others = result["completeness"].values
    assert own == pytest.approx(1, abs=0.05)
    assert random < 0.5
    assert rest < 0.05
    assert others > 0.2
    assert result["cpr"].values[0] > result["cpr"].values[1]
    assert result["cmd"].values[0] < result["cmd"].values[1]
    assert result.attrs["verdict"] == "supported"
    graph, true = scored("headscope/constructed-ioi", "eap")[0], truth("headscope/constructed-ioi")
    if method == "acdc":
        assert (graph.mask(result.attrs["circuit"]) == true).all()
        assert float(result["size"]) == true.sum()
        # No edge of a circuit without spare ones can go.
        assert float(result["needed_share"]) > 0.9
    made = from_result(result, "circuit_score", int(result["size"]))
    assert set(made.edges) == set(result.attrs["circuit"])
    heads = {f"L{layer}H{head}" for layer, head in held.heads}
    assert set(made.labels) >= heads if method == "acdc" else set(made.labels) & heads


def test_a_threshold_that_no_edge_reaches_leaves_no_circuit():
    held = known("headscope/constructed-ioi")
    options = {"method": "acdc", "threshold": 1.0, "draws": 2}
    result = execute("edge_circuits", held.model, task=held.task, options=options)
    assert float(result["size"]) == result.sizes["edge"] == 0
    assert np.isnan(float(result["needed_share"]))
    assert result["faithfulness"].values.tolist() == [0, 0]
    assert result.attrs["verdict"] == "too_few"
    assert "no circuit is left" in result.attrs["verdict_text"]


def test_the_threshold_of_acdc_is_a_share_of_the_divergence_of_the_corrupted_prompts():
    held = known("headscope/constructed-induction")
    task = encode_task(held.model, held.task)
    result = execute(
        "edge_circuits", held.model, task=held.task,
        options={"method": "acdc", "threshold": 0.05, "draws": 2},
    )  # fmt: skip
    finding = task.part(range(0, len(task), 2))
    question_positions = torch.tensor(finding.question_positions)
    clean, corrupted = (
        logits(held.model, torch.tensor(ids), (), question_positions)
        .detach()
        .double()
        .log_softmax(-1)
        for ids in (finding.ids, finding.corrupted_ids)
    )
    whole = float((clean.exp() * (clean - corrupted)).sum(-1).mean())
    assert result.attrs["corrupted_divergence"] == pytest.approx(whole, rel=1e-4)
    left = discover(held.model, finding, 0.05 * whole)
    assert (scored("headscope/constructed-induction", "eap")[0].mask(result.attrs["circuit"])
            == left).all()  # fmt: skip


def test_acdc_on_batches_of_one_prompt_leaves_the_same_edges(monkeypatch):
    held = known("headscope/constructed-induction")
    task = encode_task(held.model, held.task).part(range(4))
    whole = discover(held.model, task, 1e-3)
    monkeypatch.setattr("headscope.analyses._interventions.edge_patching.WRITES", 1)
    assert (discover(held.model, task, 1e-3) == whole).all()
    assert 0 < whole.sum() < whole.size


def test_scores_without_a_sample_are_reported_to_agree_with_patching_alone():
    held = known("headscope/constructed-induction")
    result = execute("edge_attribution", held.model, task=held.task, options={"edges": 10**6})
    assert result.sizes["edge"] == result.attrs["edges"]
    assert not result["drawn"].values.any()
    assert np.isnan(float(result["sample_agreement"]))
    assert "drawn" not in result.attrs["verdict_text"]
    result = execute("edge_attribution", held.model, task=held.task, options={"patched_prompts": 1})
    assert result.attrs["verdict"] == "too_few"
    assert "Too few patched prompts" in result.attrs["verdict_text"]


@pytest.mark.requirement("E3")
def test_attribution_agrees_with_patching_on_a_known_circuit():
    held = known_circuit.load("headscope/constructed-docstring", n=16)
    result = execute("edge_attribution", held.model, task=held.task, options={"edges": 23})
    best = set(result.attrs["top_edges"])
    assert best <= names_of("headscope/constructed-docstring")
    assert float(result["agreement_lower"]) > 0
    assert result.attrs["verdict"] == "supported"
    drawn = result["drawn"].values
    effects = result["edge_effect"].values
    assert np.abs(effects[~drawn]).min() > 10 * np.abs(effects[drawn]).max()


def names_of(name):
    graph, _ = scored(name, "eap")
    return {graph.name(*edge) for edge in np.argwhere(truth(name)).tolist()}


def test_edges_join_from_the_logits_backwards():
    graph = EdgeGraph(2, 2, parallel=False)
    scores = np.random.default_rng(0).normal(size=graph.edges.shape)
    order = greedy_order(graph, scores)
    assert len(order) == graph.count == len({*map(tuple, order.tolist())})
    joined = {"logits"}
    for target, source in order.tolist():
        assert graph.owners[target] in joined
        joined.add(graph.sources[source])
    first = max(range(len(graph.sources)), key=lambda source: abs(scores[-1, source]))
    assert order[0].tolist() == [len(graph.targets) - 1, first]
    sizes = [circuit_of(graph, order, count).sum() for count in range(0, graph.count, 5)]
    assert sizes == sorted(sizes)


def test_areas_are_those_of_the_curve():
    shares = np.array((0.0, *_circuit_metrics.SHARES))
    # Faithfulness that is the share itself: half of the square, either way.
    assert _circuit_metrics.cpr(shares[1:]) == pytest.approx(0.5)
    assert _circuit_metrics.cmd(shares[1:]) == pytest.approx(0.5)
    over = _circuit_metrics.cmd(np.full(10, 1.5))
    assert over == pytest.approx(0.5 * 0.999 + 0.001 * 0.75)


def test_a_ratio_has_an_interval_over_prompts():
    below = np.random.default_rng(0).uniform(1, 2, 40)
    point, lower, upper = _circuit_metrics.interval(0.25 * below[:, None], below, 0)
    np.testing.assert_allclose([point, lower, upper], 0.25)
    noise = np.random.default_rng(1).normal(0, 1, (40, 1))
    point, lower, upper = _circuit_metrics.interval(0.25 * below[:, None] + noise, below, 0)
    assert lower < 0.25 < upper

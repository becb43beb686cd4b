"""Edges of known circuits: found by patching and ACDC, estimated by gradients."""

from functools import cache

import numpy as np
import pytest

from headscope.analyses._interventions.ablation import encode_task
from headscope.analyses._interventions.edge_effects import edge_effects, edge_scores
from headscope.analyses._stats.classification import auroc
from headscope.analyses.circuits._acdc import discover
from headscope.probes import constructed
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


def found(name, scores):
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
    assert found(name, moved) == 1.0
    assert np.abs(moved[graph.edges & ~truth(name)]).max() < 1e-4
    shuffled = np.zeros(graph.edges.shape)
    shuffled[graph.edges] = np.random.default_rng(0).permutation(effect)
    assert found(name, shuffled) < 0.8


@pytest.mark.requirement("E3")
@pytest.mark.parametrize("name", NAMES)
def test_acdc_leaves_the_true_edges(name):
    held = known(name)
    left = discover(held.model, encode_task(held.model, held.task), 1e-3)
    assert (left == truth(name)).all()


# What gradients reach where attention is saturated: AUC of EAP and of EAP-IG with 5 steps.
REACHED = {}


@pytest.mark.requirement("E3")
@pytest.mark.parametrize("name", NAMES)
def test_gradients_find_what_saturated_attention_lets_them(name):
    reached = [found(name, scored(name, method)[1].mean(0)) for method in ("eap", "eap_ig")]
    assert reached == pytest.approx(REACHED[name], abs=0.05)

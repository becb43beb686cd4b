"""Edges of models with a norm between heads and stream, against a dense float64 oracle."""

import architectures
import edge_oracle
import numpy as np
import pytest
import torch
from edge_pairs import all_logits, pairs

from headscope.analyses._interventions import ablation
from headscope.analyses._interventions.edge_effects import edge_effects, edge_scores
from headscope.analyses._interventions.metrics import AnswerMetric
from headscope.probes import load_model

# Gemma 2 caps its scores, Gemma 3 normalises queries and keys by head, OLMo 2 over all heads.
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
MODELS = {"llama": {}, "gemma2": WINDOWS, "gemma3_text": WINDOWS, "olmo2": {}}


def uneven(name):
    """A model whose norms have gains of their own."""
    module = architectures.build(name, **MODELS[name])
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight))
    return load_model(module)


@pytest.fixture(params=MODELS)
def model(request):
    return uneven(request.param)


@pytest.mark.requirement("E3")
def test_any_set_of_edges_agrees_with_a_dense_oracle(model):
    """Grouped queries, every input of its own; no edge, all edges, and sets of every size."""
    task, graph = pairs(64), edge_oracle.graph_of(model.module)
    generator = np.random.default_rng(1)
    shares = (0.0, 0.1, 0.5, 0.9, 1.0)
    removed = np.stack(
        [graph.edges & (generator.random(graph.edges.shape) < share) for share in shares]
    )
    out = all_logits(model, task, removed)
    for prompt, (ids, other) in enumerate(zip(task.ids, task.corrupted_ids, strict=True)):
        for variant, mask in enumerate(removed):
            dense = edge_oracle.logits(model.module, list(ids), list(other), mask)
            dense = dense[list(task.question_positions[prompt])].float()
            torch.testing.assert_close(out[prompt, variant], dense, atol=1e-5, rtol=1e-4)


@pytest.mark.requirement("E3")
def test_single_edges_agree_with_a_dense_oracle(model):
    """Out of heads of both layers, patched from the layer on that they change."""
    task, graph = pairs(64), edge_oracle.graph_of(model.module)
    edges = [*zip(*map(np.ndarray.tolist, graph.edges.nonzero()), strict=True)][::11]
    found = edge_effects(model, task, "logit_difference", edges)
    answers = AnswerMetric("logit_difference", task.questions)
    clean = ablation.evaluate(model, task)
    ids, other = list(task.ids[0]), list(task.corrupted_ids[0])
    for at, edge in enumerate(edges):
        removed = np.zeros_like(graph.edges)
        removed[edge] = True
        dense = edge_oracle.logits(model.module, ids, other, removed)[
            list(task.question_positions[0])
        ]
        lost = clean[0] - float(answers(dense[None].float(), [0], [task.question_positions[0]]))
        assert found[0, at] == pytest.approx(lost, abs=2e-5)


@pytest.mark.requirement("E3")
@pytest.mark.parametrize(("method", "steps"), [("eap", 1), ("eap_ig", 3), ("clean_corrupted", 1)])
def test_scores_are_the_slopes_of_the_oracle(model, method, steps):
    """The derivative of the metric in how much of an edge is patched, by autograd in float64."""
    task = pairs(64, count=2)
    answers = AnswerMetric("logit_difference", task.questions)
    _, scores = edge_scores(model, task, "logit_difference", method, steps)
    edges = edge_oracle.graph_of(model.module).edges
    places = {"eap": [0.0], "eap_ig": [0.0, 1 / 3, 2 / 3], "clean_corrupted": [0.0, 1.0]}[method]
    for prompt, asked in enumerate(task.question_positions):

        def metric(out, prompt=prompt, asked=asked):
            return answers(out[list(asked)][None], [prompt], [asked]).sum()

        ids, other = (list(side[prompt]) for side in (task.ids, task.corrupted_ids))
        slopes = -edge_oracle.slopes(model.module, ids, other, metric, places).numpy()
        bar = 1e-5 * np.abs(slopes[edges]).max()
        np.testing.assert_allclose(scores[prompt][edges], slopes[edges], atol=bar, rtol=1e-4)

"""Edges: patched by themselves, by sets, and estimated by gradients."""

from dataclasses import replace

import architectures
import constructed
import numpy as np
import pytest
import torch
from edge_pairs import all_logits, pairs
from refusals import check_message
from torch import nn

from headscope.analyses._interventions import ablation, edge_gradients
from headscope.analyses._interventions.edge_effects import edge_effects, edge_scores
from headscope.analyses._interventions.edge_graph import EdgeGraph
from headscope.analyses._interventions.edge_patching import patching, score
from headscope.analyses._interventions.head_calls import of_heads
from headscope.analyses._interventions.metrics import AnswerMetric
from headscope.kernels.api import Request
from headscope.kernels.errors import NotApplicable
from headscope.probes import load_model
from headscope.probes.attention.forward import logits
from headscope.probes.attention.interface import intercept_attention


def answers_of(model, task, answers, removed):
    """Metric with sets of edges removed (prompt, variant)."""
    out = all_logits(model, task, removed)
    rows = list(range(len(task)))
    return np.stack(
        [
            answers(out[:, at], rows, task.question_positions).detach().numpy()
            for at in range(len(removed))
        ],
        1,
    )


WHOLE = (
    "llama", "gpt2", "gpt_neox", "phi", "phi3", "qwen2", "qwen3", "mistral", "gemma", "opt",
    "gpt_oss", "mixtral", "qwen3_moe", "gemma2", "gemma3_text", "olmo2", "falcon", "mpt", "bloom",
    "gptj", "gpt_neo", "codegen", "xglm", "gpt_neox_japanese",
)  # fmt: skip


@pytest.mark.requirement("E3")
@pytest.mark.parametrize("name", WHOLE)
def test_no_edge_removed_is_clean_and_all_removed_is_corrupted(name):
    model = load_model(architectures.build(name))
    task = pairs(64)
    with patching(model, task) as split:
        edges = split.graph.edges
    some = np.random.default_rng(0).random(edges.shape) < 0.5
    out = all_logits(model, task, np.stack([edges & False, edges, edges & some]))
    asked = torch.tensor(task.question_positions)
    clean = logits(model, torch.tensor(task.ids), (), asked).detach()
    corrupted = logits(model, torch.tensor(task.corrupted_ids), (), asked).detach()
    scale = float((clean - corrupted).abs().max())
    torch.testing.assert_close(out[:, 0], clean, atol=1e-4 * scale, rtol=1e-4)
    torch.testing.assert_close(out[:, 1], corrupted, atol=1e-4 * scale, rtol=1e-4)
    assert float((out[:, 2] - clean).abs().max()) > 1e-3 * scale


@pytest.mark.requirement("E3")
@pytest.mark.parametrize("name", WHOLE)
def test_all_edges_out_of_a_head_patched_is_its_output_replaced(name):
    """By an edit in the attention of the whole model, which knows no edges."""
    model, task = load_model(architectures.build(name)), pairs(64)
    with patching(model, task) as split:
        graph = split.graph
    values = ablation.kept_z(ablation.capture_corrupted(model, task))
    metric = "logit_difference"
    replaced = ablation.ablate_each_head(model, task, metric, values).reshape(len(task), -1)
    heads = [
        at for layer in range(2) for at in range(len(graph.sources))[graph.head_sources(layer)]
    ]
    removed = np.zeros((len(heads), *graph.edges.shape), dtype=bool)
    for number, head in enumerate(heads):
        removed[number][:, head] = graph.edges[:, head]
    patched = answers_of(model, task, AnswerMetric(metric, task.questions), removed)
    clean = ablation.evaluate(model, task)[:, None]
    bar = 1e-4 * np.abs(replaced - clean).max()
    np.testing.assert_allclose(patched, replaced, atol=bar)


def every_edge(graph):
    return list(zip(*map(np.ndarray.tolist, graph.edges.nonzero()), strict=True))


@pytest.mark.requirement("E3")
def test_single_edges_agree_with_the_sets_of_one(random_llama):
    task = pairs(len(constructed.WORDS))
    graph = EdgeGraph(2, 4, parallel=False)
    edges = every_edge(graph)
    found = edge_effects(random_llama, task, "logit_difference", edges)
    answers = AnswerMetric("logit_difference", task.questions)
    clean = ablation.evaluate(random_llama, task)
    for at in range(0, len(edges), 7):
        removed = np.zeros((1, *graph.edges.shape), dtype=bool)
        removed[0][edges[at]] = True
        out = all_logits(random_llama, task, removed)[:, 0]
        lost = clean - answers(out, [0, 1, 2], task.question_positions).numpy()
        np.testing.assert_allclose(found[:, at], lost, atol=1e-5)


def test_many_edges_are_patched_a_few_sets_at_a_time(random_llama, monkeypatch):
    task, graph = pairs(len(constructed.WORDS)), EdgeGraph(2, 4, parallel=False)
    edges = every_edge(graph)[::5]
    whole = edge_effects(random_llama, task, "logit_difference", edges)
    monkeypatch.setattr("headscope.analyses._interventions.edge_effects.SETS", 3 * graph.edges.size)
    few = edge_effects(random_llama, task, "logit_difference", edges)
    np.testing.assert_allclose(few, whole, atol=1e-6)


def test_a_gradient_that_is_not_finite_is_refused(random_llama, monkeypatch):
    task = pairs(len(constructed.WORDS))
    own = edge_gradients.attribute

    def broken(run, *arguments):
        scores = own(run, *arguments)
        scores[1, 0, 0] = torch.nan
        return scores

    monkeypatch.setattr(edge_gradients, "attribute", broken)
    check_message("not finite on 1 of 3", edge_scores, random_llama, task, "logit_difference")


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "olmo2", "bloom"])
def test_edges_of_a_model_in_half_precision(name):
    task = pairs(64)
    models = [
        load_model(architectures.build(name).to(dtype)) for dtype in (torch.bfloat16, torch.float32)
    ]
    (_, scores), (_, exact) = (
        edge_scores(model, task, "logit_difference", "eap") for model in models
    )
    known = np.isfinite(exact)
    assert np.corrcoef(scores[known], exact[known])[0, 1] > 0.99


def test_a_bias_that_all_heads_share_goes_with_every_one_of_them(random_llama):
    calls = []

    def receive(call):
        calls.append(call)
        return call.attend(Request(stats=()))["z"]

    ids = torch.tensor([[3, 5, 9, 2]])
    with torch.no_grad(), intercept_attention(random_llama, receive):
        random_llama.module(ids)
    bias = torch.randn(1, 4, 4, 4)
    for shared in (bias[:, :1], bias):
        call = replace(calls[0], bias=shared)
        whole = call.attend(Request(stats=()))["z"]
        for member in range(2):
            heads = slice(member, None, 2)
            own = of_heads(call, heads, call.query[:, heads], call.key, call.value)
            torch.testing.assert_close(own.attend(Request(stats=()))["z"], whole[:, heads])


class Same(nn.Module):
    """In place of a norm: it changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(32))

    def forward(self, stream):
        return stream * self.weight


def linear_llama(seed: int = 0):
    """A Llama with grouped queries that is linear in its embedding.

    Attention is uniform, norms do nothing, MLPs are a product with one matrix.
    """
    model = constructed.random_llama(seed)
    module = model.module
    with torch.no_grad():
        for block in module.model.layers:
            block.self_attn.q_proj.weight.zero_()
            block.input_layernorm, block.post_attention_layernorm = Same(), Same()
            block.mlp = nn.Linear(32, 32, bias=False)
            block.mlp.weight.mul_(0.5)
            for part in ("v_proj", "o_proj"):
                getattr(block.self_attn, part).weight.mul_(8)
        module.model.norm = Same()
    return load_model(module)


@pytest.mark.requirement("E3")
def test_on_a_linear_model_with_grouped_queries_attribution_is_exact_patching():
    model, task = linear_llama(), pairs(len(constructed.WORDS))
    graph = EdgeGraph(2, 4, parallel=False)
    edges = every_edge(graph)
    exact = edge_effects(model, task, "logit_difference", edges)
    for method in edge_gradients.METHODS:
        _, scores = edge_scores(model, task, "logit_difference", method, 2)
        estimates = np.stack([scores[:, target, source] for target, source in edges], 1)
        np.testing.assert_allclose(estimates, exact, atol=2e-5 * np.abs(exact).max())
    # Heads that share keys and values have paths of their own.
    values = {name: exact[:, edges.index((graph.targets.index(name), 0))] for name in
              ("L0H0.v", "L0H1.v")}  # fmt: skip
    assert np.abs(values["L0H0.v"] - values["L0H1.v"]).max() > 1e-2 * np.abs(exact).max()


@pytest.mark.requirement("E3")
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gpt2", "qwen3", "falcon", "bloom"])
def test_attribution_is_the_first_order_of_patching(name):
    """Corrupted tokens whose embeddings lie close: the error of the estimate is of second order."""
    module = architectures.build(name)
    torch.manual_seed(5)
    table = module.get_input_embeddings().weight
    with torch.no_grad():
        table[32:] = table[:32] + 1e-3 * table.std() * torch.randn_like(table[:32])
    model = load_model(module)
    task = pairs(32)
    task = replace(task, twins=tuple(tuple(token + 32 for token in row) for row in task.ids))
    with patching(model, task) as split:
        graph = split.graph
    _, scores = edge_scores(model, task, "logit_difference", "eap")
    order = np.argsort(-np.nan_to_num(np.abs(scores.mean(0))).ravel())
    chosen = [divmod(int(at), scores.shape[2]) for at in (*order[:12], *order[20:80:6])]
    exact = edge_effects(model, task, "logit_difference", chosen)
    estimates = np.stack([scores[:, target, source] for target, source in chosen], 1)
    assert {graph.targets[target][-1] for target, _ in chosen} >= {"v", "q", "k"}
    np.testing.assert_allclose(estimates, exact, atol=2e-3 * np.abs(exact).max())


@pytest.mark.requirement("E3")
def test_integrated_scores_of_the_embedding_sum_to_the_change_of_the_metric(random_llama):
    model, task = random_llama, pairs(len(constructed.WORDS))
    change = ablation.evaluate(model, task) - ablation.evaluate(model, task.corrupted())
    misses = []
    for steps in (4, 16, 64):
        _, scores = edge_scores(model, task, "logit_difference", "eap_ig", steps)
        misses.append(np.abs(scores[:, :, 0].sum(1) - change).max() / np.abs(change).max())
    # One-sided sums: the error falls like 1 / steps.
    assert misses[2] < 0.02
    assert misses[0] > 2 * misses[1] > 4 * misses[2]


@pytest.mark.requirement("E3")
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "olmo2"])
def test_integrated_scores_of_activations_sum_to_what_patching_their_source_loses(name):
    """Of the embedding, of the heads of a layer, of an MLP: all edges of it patched at once."""
    model, task = load_model(architectures.build(name)), pairs(64)
    answers = AnswerMetric("logit_difference", task.questions)
    misses = []
    for steps in (4, 16, 64):
        graph, scores = edge_scores(model, task, "logit_difference", "eap_ig_activations", steps)
        first, heads = graph.sources_before(0), graph.heads
        groups = [[0], range(first, first + heads), [first + heads], [len(graph.sources) - 1]]
        removed = np.zeros((1 + len(groups), *graph.edges.shape), dtype=bool)
        for number, sources in enumerate(groups, 1):
            removed[number][:, sources] = graph.edges[:, sources]
        patched = answers_of(model, task, answers, removed)
        lost = patched[:, :1] - patched[:, 1:]
        sums = np.stack([np.nansum(scores[:, :, sources], (1, 2)) for sources in groups], 1)
        misses.append(np.abs(sums - lost).max(0) / np.abs(lost).max(0))
    # One-sided sums: the error falls like 1 / steps, where it is not as small as rounding.
    assert (misses[2] < 0.03).all(), misses
    assert (misses[0][:2] > 2 * misses[1][:2]).all()
    assert (misses[1][:2] > 2 * misses[2][:2]).all()


@pytest.mark.requirement("E3")
def test_one_step_of_activations_and_the_steps_of_the_embedding_are_those_of_other_methods():
    model, task = load_model(architectures.build("llama")), pairs(64)
    scores = {
        (method, steps): edge_scores(model, task, "logit_difference", method, steps)[1]
        for method in ("eap", "eap_ig", "eap_ig_activations")
        for steps in (1, 3)
    }
    np.testing.assert_allclose(scores["eap_ig_activations", 1], scores["eap", 1], atol=1e-6)
    activations, inputs = (scores[name, 3] for name in ("eap_ig_activations", "eap_ig"))
    np.testing.assert_allclose(activations[:, :, 0], inputs[:, :, 0], atol=1e-6)
    assert np.nanmax(np.abs(activations - inputs)) > 1e-3 * np.nanmax(np.abs(inputs))


def test_edges_on_no_way_to_the_logits_change_nothing(random_llama):
    task, graph = pairs(len(constructed.WORDS)), EdgeGraph(2, 4, parallel=False)
    kept = graph.edges & (np.random.default_rng(3).random(graph.edges.shape) < 0.15)
    reduced = graph.reduced(kept)
    assert reduced.sum() < kept.sum()
    out = all_logits(random_llama, task, np.stack([graph.edges & ~kept, graph.edges & ~reduced]))
    torch.testing.assert_close(out[:, 0], out[:, 1], atol=1e-6, rtol=1e-5)


def test_models_that_cannot_be_taken_apart_are_refused_by_name():
    for name in ("deepseek_v3", "jamba"):
        model = load_model(architectures.build(name))
        with (
            pytest.raises((NotApplicable, ValueError), match="model:"),
            patching(model, pairs(64)) as split,
        ):
            list(split.batches())


def test_batches_of_one_prompt_say_the_same(random_llama, monkeypatch):
    task = pairs(len(constructed.WORDS))
    _, whole = edge_scores(random_llama, task, "logit_difference", "eap_ig", 2)
    monkeypatch.setattr("headscope.analyses._interventions.edge_patching.WRITES", 1)
    _, single = edge_scores(random_llama, task, "logit_difference", "eap_ig", 2)
    np.testing.assert_allclose(single, whole, atol=1e-6)


def test_scores_of_a_batch_do_not_hang_on_how_sets_are_grouped(random_llama, monkeypatch):
    task, graph = pairs(len(constructed.WORDS)), EdgeGraph(2, 4, parallel=False)
    answers = AnswerMetric("logit_difference", task.questions)
    generator = np.random.default_rng(2)
    removed = np.stack(
        [graph.edges & (generator.random(graph.edges.shape) < 0.3) for _ in range(5)]
    )
    removed[2:, : graph.head_targets(1).start] = False
    removed[4] = False

    def scored():
        with patching(random_llama, task) as split:
            prompts, run = next(split.batches())
            return score(run, answers, prompts, removed)

    whole = scored()
    monkeypatch.setattr("headscope.analyses._interventions.edge_run.INPUTS", 1)
    np.testing.assert_allclose(scored(), whole, atol=1e-6)
    np.testing.assert_allclose(whole[:, 4], ablation.evaluate(random_llama, task), atol=1e-6)

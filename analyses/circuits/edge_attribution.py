"""Edge attribution: which connections between heads, MLPs and embedding a task runs over.

An edge is what one node writes into the residual stream and another reads of it, as queries, keys
or values where it is a head. Its score is ``(z_u − z'_u) · ∂m/∂in_v``, where z and z' are what the
source writes on the clean and on the corrupted prompt and in_v is what the target reads: to first
order what the metric loses when this edge alone is patched. The gradient is that on the clean
prompt (EAP), or the mean over embeddings on the way from the corrupted to the clean one (EAP-IG,
inputs), or over what the source writes on that way (EAP-IG, activations).
All edges are scored by a few passes, and query heads that share keys and values are kept apart. The
best edges and a random sample are patched one at a time, which says how far the scores can be
trusted.

In models with a norm between the heads of a layer and the stream (Gemma 2 and 3, OLMo 2) a target
reads the norm of the sum of those heads, each clean or corrupted as its edge says: with all edges
patched it reads the corrupted prompt, which a frozen scale would not give. The score has the norm's
derivative where the gradient is taken.

Sources: Syed et al., Attribution Patching Outperforms Automated Circuit Discovery (2310.10348);
Hanna et al., Have Faith in Faithfulness (2403.17806), whose code evaluates circuits of Gemma 2 by
the same norm, but leaves it out of the scores.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import xarray as xr

from headscope.analyses._interventions import ablation, edge_patching
from headscope.analyses._interventions.edge_effects import edge_effects, edge_scores
from headscope.analyses._interventions.edge_gradients import METHODS
from headscope.analyses._interventions.edge_graph import EdgeGraph
from headscope.analyses._interventions.metrics import METRICS, UNITS, differentiable
from headscope.analyses._runtime.options import AtLeast, OneOf
from headscope.analyses._runtime.results import GRID, Results, label, require, require_maps, top
from headscope.analyses._runtime.verdict import Verdict, interval_verdict
from headscope.analyses._stats.bootstrap import Array, bootstrap
from headscope.analyses._stats.rank_correlation import agreement
from headscope.analyses.circuits._edge_table import coordinates, head_sources, mlp_sources
from headscope.kernels.formatting import amount
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task

NEEDS = ()
TASK = "ioi"
PROMPTS = 32
SUPPORTS: set[str] = set()
QUICK = {"steps": 2, "edges": 8, "sample": 8, "patched_prompts": 2}

SOURCE = "Syed et al. 2310.10348; Hanna et al. 2403.17806"
OVER_EDGES = "rank correlation over edges of the absolute means over prompts"
# How the gradients are taken.
TAKEN = {
    "eap": "gradient on the clean prompt (EAP)",
    "eap_ig": "mean gradient over {steps} embeddings e' + k/{steps} (e − e') (EAP-IG, inputs)",
    "eap_ig_activations": "mean gradient over {steps} outputs z' + k/{steps} (z − z') of its "
    "source (EAP-IG, activations)",
    "clean_corrupted": "mean gradient of the clean and the corrupted prompt",
}


def memory(model: Model, ids: Sequence[Sequence[int]]) -> int:
    """Return the bytes at the peak, beside the model, for prompts of these tokens."""
    return edge_patching.memory(model, ids, circuits=False)


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    method: Annotated[str, OneOf(METHODS)] = "eap_ig",
    steps: Annotated[int, AtLeast(1)] = 5,
    metric: Annotated[str, OneOf(METRICS)] = "task",
    edges: Annotated[int, AtLeast(1)] = 40,
    sample: Annotated[int, AtLeast(2)] = 40,
    patched_prompts: Annotated[int, AtLeast(1)] = 16,
    seed: int = 0,
) -> xr.Dataset:
    """Score all edges by gradients, and patch the best ones and a random sample.

    Parameters
    ----------
    capture, model, task
        Model and task whose metric is followed; of the capture only the provenance is used.
    method
        Where gradients are taken: ``eap`` (on the clean prompt), ``eap_ig`` (at several embeddings
        between corrupted and clean), ``eap_ig_activations`` (at several outputs of the source of
        the edge, which takes about as many times as long as the model has layers),
        ``clean_corrupted`` (at both ends).
    steps
        Embeddings of ``eap_ig``, or outputs of ``eap_ig_activations``, 1 or more; with one both
        are ``eap``.
    metric
        ``task`` (the task's own), ``logit_difference``, ``probability_difference``,
        ``log_probability`` or ``accuracy``. Accuracy has no gradient; edges are then scored and
        patched by the log-probability of the answers.
    edges
        Number of best edges that are patched and shown.
    sample
        Number of other edges, drawn at random, that are patched and shown.
    patched_prompts
        First prompts that edges are patched on.
    seed
        Seed of the sample and of the bootstrap over prompts.

    Returns
    -------
    Dataset with ``edge_score`` (edge), ``edge_effect`` (edge; what patching it alone loses, the
    causal number), ``node_score`` (layer, head; sum over a head's outgoing edges, which is its
    attribution patching), ``mlp_score`` (layer), ``input_share`` (condition; share of all absolute
    scores that go into queries, keys, values, MLPs and logits), ``agreement`` and
    ``sample_agreement`` (Spearman's ρ of scores and effects over all patched edges, and over the
    sample), ``clean`` and ``corrupted`` (the metric). With 95 % intervals over prompts. Positive
    numbers help the clean answer. Coordinates of an edge: its ends, ``input`` (q, k, v or empty)
    and ``drawn`` (whether it is of the sample).
    """
    require(capture, NEEDS, "edge_attribution")
    require_maps(capture, "edge_attribution")
    name = differentiable(task.metric if metric == "task" else metric)
    encoded = ablation.encode_task(model, task)
    graph, scores = edge_scores(model, encoded, name, method, steps)
    levels = [
        ablation.evaluate(model, prompts, (), name) for prompts in (encoded, encoded.corrupted())
    ]
    mean = scores.mean(0)
    chosen, sampled = _choose(graph, mean, edges, sample, seed)
    patched_task = encoded.part(range(len(task))[:patched_prompts])
    effect = edge_effects(model, patched_task, name, chosen)
    ends = tuple(np.array(chosen).T)
    chosen_scores = scores[:, *ends].astype(float)

    words, units = name.replace("_", " "), UNITS[name]
    convention = f"{words} on {len(task)} prompts of {task.name}"
    taken_at = TAKEN[method].format(steps=steps)
    how = f"(z clean − z corrupted) · ∂m/∂in, summed over positions; {taken_at}; {convention}"
    patched = (
        f"clean − patched, one edge at a time; {words} on {len(patched_task)} prompts of "
        f"{task.name}"
    )
    results = Results(capture, seed=seed, source=SOURCE, convention=convention)
    results.add_means(
        ("edge_score", ("edge",), chosen_scores, "Edge attribution", (units, "diverging"), how),
        ("node_score", GRID, np.nansum(scores[:, :, head_sources(graph)], 1),
         "Sum over outgoing edges", (units, "diverging"), f"sum over the edges of a head; {how}"),
        ("mlp_score", ("layer",), np.nansum(scores[:, :, mlp_sources(graph)], 1),
         "Sum over outgoing edges of the MLP", (units, "diverging"),
         f"sum over the edges of an MLP; {how}"),
    )  # fmt: skip
    results.add_mean(
        "edge_effect", ("edge",), effect, "Lost with the edge patched", units, "diverging",
        evidence="causal", convention=patched,
    )  # fmt: skip
    kinds, shares = _input_shares(graph, scores)
    results.add_mean(
        "input_share", ("condition",), shares, "Where edges lead", "share", "sequential", 0, 1,
        convention=f"sum of absolute scores, of all; {how}",
    )  # fmt: skip
    rhos = {}
    for key, part in (("agreement", slice(None)), ("sample_agreement", sampled)):
        rhos[key] = agreement(chosen_scores[: len(patched_task), part], effect[:, part], seed)
        count = len(effect[0, part])
        results.add_interval(
            key, (), rhos[key], "Scores against patching" + (", sample" if "sample" in key else ""),
            "Spearman ρ", "diverging", -1, 1,
            convention=f"{OVER_EDGES}; {count} edges, {len(patched_task)} prompts",
        )  # fmt: skip
    for side, values in zip(("clean", "corrupted"), levels, strict=True):
        title = f"{words.capitalize()} on the {side} prompt"
        results.add_mean(side, (), values, title, units, "diverging")
    best = [graph.name(*edge) for edge in chosen[:5]]
    return results.dataset(
        {**coordinates(graph, chosen), "drawn": ("edge", sampled), "condition": kinds},
        _verdict(levels, rhos, graph, best, seed),
        edges=graph.count,
        top_edges=best,
        top_heads=[label(head) for head in top(np.abs(results["node_score"].values), 5)],
    )


def _choose(
    graph: EdgeGraph, mean: Array, count: int, sample: int, seed: int
) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Return the best edges and some drawn from the others, and which were drawn."""
    places = np.flatnonzero(graph.edges)
    order = places[np.argsort(-np.abs(mean.ravel()[places]), kind="stable")]
    best, rest = order[:count], order[count:]
    generator = np.random.default_rng(seed)
    more = generator.choice(rest, min(sample, len(rest)), replace=False)
    chosen = [divmod(int(at), graph.edges.shape[1]) for at in (*best, *more)]
    return chosen, np.arange(len(chosen)) >= len(best)


def _input_shares(graph: EdgeGraph, scores: Array) -> tuple[list[str], Array]:
    """Return kinds of inputs, and the share of absolute scores into each (prompt, kind)."""
    into = np.nansum(np.abs(scores), 2)
    kinds = ["q", "k", "v", "MLP", "logits"]
    ends = [".q", ".k", ".v", ".mlp", "logits"]
    sums = np.stack([
        into[:, [name.endswith(end) for name in graph.targets]].sum(1) for end in ends
    ], 1)  # fmt: skip
    whole = sums.sum(1, keepdims=True)
    return kinds, sums / np.where(whole > 0, whole, np.nan)


def _verdict(
    levels: list[Array], rhos: Mapping[str, tuple[float, float, float]], graph: EdgeGraph,
    best: list[str], seed: int,
) -> Verdict:  # fmt: skip
    gap = levels[0] - levels[1]
    if not float(bootstrap(gap, seed=seed)[1]) > 0:
        return Verdict(
            "too_few",
            "The clean prompts are not shown to do better than the corrupted ones, so there is "
            "nothing for edges to carry.",
        )
    (rho, lower, _), (drawn, low, _) = rhos["agreement"], rhos["sample_agreement"]
    text = f"strongest of {graph.count} edges: {', '.join(best[:3])}"
    verdict = interval_verdict(
        lower,
        f"Scores rank edges like patching one at a time (Spearman ρ {amount(rho)}); {text}.",
        f"Scores do not rank edges like patching (Spearman ρ {amount(rho)}); trust the patches.",
        f"Too few patched prompts or edges to hold scores against patching; {text}.",
    )
    if np.isnan(drawn):
        return verdict
    if not low > 0:
        verdict &= Verdict(
            verdict.state,
            f"Among edges drawn at random they are not shown to agree (ρ {amount(drawn)}).",
        )
    return verdict

"""Atlas of heads: a map of all attention patterns, with what pruning each head costs.

Heads are put in the plane twice: by the principal components of their pooled patterns, where heads
of similar patterns lie together, and by distance of attention against its strength. Both maps, side
by side, show the rank of each head by several measures of what its removal costs: the task's
metric, the log-probability of the answers, the divergence of the whole output distribution; and by
the gate gradient, which removes nothing. The measures need not agree, so their rank correlations
are reported too. In a model of many heads those that gradients rank first are removed, and a random
sample of the others; ranks are among these.

Sources: How Does Attention Work in Vision Transformers? (importance by pruning, strength against
distance, atlas of patterns); Michel et al. 1905.10650 for the gate gradient.
"""

from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr

from headscope.analyses._interventions import ablation, head_gradients
from headscope.analyses._interventions.metrics import UNITS, AnswerMetric, differentiable
from headscope.analyses._interventions.screening import Screen, screen
from headscope.analyses._measurements import qk_rows, without_first
from headscope.analyses._measurements.qk_rows import Array
from headscope.analyses._runtime.options import AtLeast
from headscope.analyses._runtime.results import (
    SHARE,
    Results,
    attending,
    heads,
    label,
    require,
    top,
)
from headscope.analyses._runtime.verdict import Verdict
from headscope.analyses._stats.length_trend import mean, per_query
from headscope.analyses._stats.rank_correlation import ranked
from headscope.analyses.qk_geometry import _signatures
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import amount, percent
from headscope.probes.attention.forward import logits
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task

NEEDS = ("lse", "distance", "distance_hist", "first_mass", "topk")
SUPPORTS = {"hybrid"}
KEEP = ("q", "k")
TASK = "story"
PROMPTS = 12

SOURCE = "How Does Attention Work in Vision Transformers?"
PRUNING = ("task metric", "log-probability", "output divergence")
METRICS = (*PRUNING, "gate gradient")
MAPS = ("patterns", "strength against distance")
AXES = (
    "first component, or log2 of 1 + mean distance in tokens",
    "second component, or mean largest weight",
)


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    queries: Annotated[int, AtLeast(1)] = 16,
    skip: Annotated[int, AtLeast(1)] = 8,
    exhaustive: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Map all heads by their patterns, and prune each in turn.

    Parameters
    ----------
    capture
        Capture of the task with the kept ``q`` and ``k`` and the statistics ``lse``, ``distance``,
        ``distance_hist``, ``first_mass`` and ``topk``.
    model
        Model that was captured; heads are set to zero in turn.
    task
        Task whose metric is followed.
    queries
        Queries of every prompt whose rows make the map, evenly over it.
    skip
        Queries left out at the start, where few keys can be seen.
    exhaustive
        Set every head to zero, whatever their number. Without it, in a model of more than 64 heads:
        those that gradients rank first, and a random sample of the others.
    seed
        Seed of the bootstrap over prompts, and of the sample of heads.

    Returns
    -------
    Dataset with ``lost_metric``, ``lost_log_probability`` and ``output_divergence`` (layer, head;
    what setting the head to zero costs), ``gate_gradient`` (layer, head), ``strength`` and
    ``strength_without_first`` token (bin, layer, head; share of the weight by distance), all with
    95 % intervals over prompts; ``atlas`` (map, metric, point; rank of the head, 1 for the most
    important, at the coordinates ``x`` and ``y``)
    and ``agreement`` (one, other; Spearman's ρ over heads between the measures, the distance and
    the largest weight).
    """
    from scipy.stats import rankdata

    require(capture, (*KEEP, *NEEDS), "atlas")
    qk_rows.refuse_other(capture, "atlas")
    has_map = attending(capture)
    names = heads(capture)
    if len(names) < 3:
        raise NotApplicable(f"model: {len(names)} heads make no map; atlas needs 3 or more")
    samples, units, chosen = _prune(model, task, exhaustive, seed)
    for values in samples.values():
        values[:, ~has_map] = np.nan

    prompts = f"{capture.sizes['prompt']} prompts of {task.name}"
    convention = f"head set to zero, {chosen.convention}; {prompts}"
    lost = f"intact − pruned; {convention}"
    results = Results(capture, seed=seed, source=SOURCE)
    for name, title, meaning, rule in (
        ("lost_metric", f"Lost on {task.name} without the head", (units[0], "diverging"), lost),
        ("lost_log_probability", "Log-probability lost without the head", ("nats", "diverging"),
         lost),
        ("output_divergence", "Output moved by removing the head", ("bits", "sequential", 0, 1),
         f"Jensen–Shannon divergence at the questions; {convention}"),
        ("gate_gradient", "Gate-gradient importance", (units[1], "sequential", 0),
         f"E|∂m/∂ξ| at ξ = 1; {prompts}"),
    ):  # fmt: skip
        causal = {} if name == "gate_gradient" else {"evidence": "causal"}
        results.add_mean(
            name, ("layer", "head"), samples[name], title, *meaning, convention=rule, **causal
        )
    variants = _variants(capture)
    order = sorted(variants, reverse=without_first.first_dominates(capture))
    for end in order:
        results.add_mean(
            f"strength{end}", ("bin", "layer", "head"),
            np.moveaxis(mean(variants[end][0], 3), -1, 1),
            f"Attention strength at a distance{without_first.TITLE if end else ''}", *SHARE,
            convention="mean over queries of the weight on keys from this distance to the next"
            f"{without_first.RULE if end else ''}",
        )  # fmt: skip

    components, explained = _components(_features(capture, names, queries, skip))
    index = tuple(np.transpose(names))
    _, distance, weights = variants[order[0]]
    distance, strongest = (mean(mean(values), 0)[index] for values in (distance, weights[..., 0]))
    points = np.stack([components, np.stack([np.log2(1 + distance), strongest], axis=1)])
    scores = {
        metric: np.abs(results[name].values[index])
        for metric, name in zip(METRICS, samples, strict=True)
    }
    ranks = np.stack([rankdata(values, nan_policy="omit") - 1 for values in scores.values()])
    ranks /= (~np.isnan(ranks)).sum(-1, keepdims=True) - 1
    compared = {**scores, "distance": distance, "largest weight": strongest}
    results.add_all(
        ("atlas", ("map", "metric", "point"), np.broadcast_to(ranks, (len(MAPS), *ranks.shape)),
         "Rank of the head by what its removal costs", ("share of heads below", "sequential", 0, 1),
         "rank of the absolute mean over prompts; 1: the most important; "
         f"the two components show {percent(explained)} of the variance of the patterns"),
        ("agreement", ("one", "other"),
         [[_ranked(first, second) for second in compared.values()] for first in compared.values()],
         "Agreement of two rankings of heads", ("Spearman ρ", "diverging", -1, 1),
         f"rank correlation over {len(names)} heads, with pruning {chosen.convention}"),
    )  # fmt: skip
    across, up = (f"{axis}{without_first.TITLE if order[0] else ''}" for axis in AXES)
    coords: dict[str, Any] = {
        "bin": capture["bin"].values,
        "map": list(MAPS),
        "metric": list(METRICS),
        "one": list(compared),
        "other": list(compared),
        "x": (("map", "point"), points[..., 0], {"long_name": across}),
        "y": (("map", "point"), points[..., 1], {"long_name": up}),
        "label": ("point", [label(head) for head in names]),
    }
    best = {name: [label(head) for head in top(results[name].values, 5)] for name in samples}
    return results.dataset(
        coords,
        _verdict(scores),
        without_first.dominance_note(
            capture, "strength and distance come first without it"
        ).strip(),
        convention=convention,
        heads_by_type=best,
    )


def _variants(capture: xr.Dataset) -> dict[str, tuple[Array, Array, Array]]:
    """Return strength by distance, distance and largest weights, with and without first token."""
    histogram, distance, weights = (
        per_query(capture, name) for name in ("distance_hist", "distance", "topk")
    )
    first = without_first.mass(capture)
    clip = float(capture.attrs.get("clip") or np.inf)
    return {
        "": (histogram, distance, weights),
        without_first.SUFFIX: (
            without_first.strength(histogram, first, capture["bin"].values),
            without_first.distance(distance, first, clip), without_first.largest(weights, first),
        ),
    }  # fmt: skip


def _ranked(first: Array, second: Array) -> float:
    """Return the rank correlation over the heads that both know."""
    present = ~(np.isnan(first) | np.isnan(second))
    return ranked(first[present], second[present])


def _prune(
    model: Model, task: Task, exhaustive: bool, seed: int
) -> tuple[dict[str, Array], tuple[str, str], Screen]:
    """Return what removing heads costs by every measure (prompt, layer, head), and which ones."""
    smooth = differentiable(task.metric)
    encoded = ablation.encode_task(model, task)
    chosen = screen(model, encoded, task.metric, exhaustive=exhaustive, seed=seed)
    question_positions = [
        [question.at for question in questions] for questions in encoded.questions
    ]
    with torch.no_grad():
        clean = [
            logits(model, torch.tensor([ids]), (), torch.tensor([at]))[0].float().log_softmax(-1)
            for ids, at in zip(encoded.ids, question_positions, strict=True)
        ]

    def divergence(output: torch.Tensor, prompts: Any, positions: Any) -> torch.Tensor:
        divergences = []
        for row, prompt, queries in zip(output, prompts, positions, strict=True):
            ablated = (
                row[[queries.index(at) for at in question_positions[prompt]]]
                .float()
                .log_softmax(-1)
            )
            middle = torch.logaddexp(clean[prompt], ablated) - np.log(2)
            parts = [(side.exp() * (side - middle)).sum(-1) for side in (clean[prompt], ablated)]
            divergences.append((parts[0] + parts[1]).mean() / (2 * np.log(2)))
        return torch.stack(divergences).clamp_min(0.0)

    names = (task.metric, "log_probability")
    measures: list[ablation.Measure] = [divergence]
    measures[:0] = [AnswerMetric(name, encoded.questions) for name in names]
    pruned = ablation.ablate_heads(model, encoded, measures, heads=chosen.heads)
    intact = [ablation.evaluate(model, encoded, (), name) for name in names]
    samples = {
        "lost_metric": intact[0][:, None, None] - pruned[0],
        "lost_log_probability": intact[1][:, None, None] - pruned[1],
        "output_divergence": pruned[2],
        "gate_gradient": np.abs(head_gradients.gate_gradient(model, encoded, smooth)),
    }
    return samples, (UNITS[task.metric], UNITS[smooth]), chosen


def _features(capture: xr.Dataset, names: list[tuple[int, int]], queries: int, skip: int) -> Array:
    """Return the pooled rows of every head, averaged over prompts and queries (head, cell)."""
    total = np.zeros((len(names), 2 + 2 * _signatures.NEAR + _signatures.TILES))
    count = capture.sizes["prompt"]
    for prompt in range(count):
        positions = qk_rows.chosen(int(capture["length"].values[prompt]), queries, skip)
        rows = _signatures.of_prompt(capture, prompt, positions)
        total += rows[tuple(np.transpose(names))].mean(1) / count
    return total


def _components(features: Array) -> tuple[Array, float]:
    """Return the two principal components of every head, and the variance that they show."""
    from sklearn.decomposition import PCA

    # Square roots, so that distances are those of distributions (Hellinger), not of large cells.
    pca = PCA(2, svd_solver="full")
    return np.asarray(pca.fit_transform(features**0.5)), float(pca.explained_variance_ratio_.sum())


def _verdict(scores: dict[str, Array]) -> Verdict:
    """Conclude whether two measures of pruning rank the heads alike."""
    rho = _ranked(scores["task metric"], scores["output divergence"])
    text = (
        f"the task's metric and the whole output rank the heads "
        f"{'alike' if rho > 0.5 else 'differently'} when they are pruned (Spearman ρ {amount(rho)})"
    )
    if rho > 0.5:
        return Verdict("supported", f"Pruning measures agree: {text}.")
    return Verdict(
        "disagreement",
        f"Pruning measures do not agree: {text}; say which measure an importance is of.",
    )

"""Relevance of heads, with the ablation of those heads beside it."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from headscope.analyses._interventions import ablation
from headscope.analyses._interventions.screening import FIRST, screen
from headscope.analyses._relevance.target import Target, of_task
from headscope.analyses._runtime.options import Between
from headscope.analyses._runtime.results import GRID, Results, label, top
from headscope.analyses._runtime.verdict import Verdict, interval_verdict
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses._stats.rank_correlation import OVER_HEADS, agreement, most_different
from headscope.kernels.formatting import amount
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tokens import EncodedTask


def targets(model: Model, task: Task, prompt: int) -> tuple[EncodedTask, list[Target]]:
    """Return the last question of every prompt, and the target of each."""
    encoded = ablation.encode_task(model, task)
    Between(0, len(encoded) - 1).check("prompt", prompt)
    answers = of_task(encoded)
    return replace(encoded, questions=tuple(row[-1:] for row in encoded.questions)), answers


class Lost(NamedTuple):
    """The answer's loss without each head (prompt, layer, head), and the heads that were tried."""

    values: Array
    metric: str
    units: str
    heads: str


def mean_ablation(
    capture: xr.Dataset,
    model: Model,
    encoded: EncodedTask,
    scores: Array,
    *,
    exhaustive: bool,
    seed: int,
) -> Lost:
    """Ablate heads by their means, of a large model those that score most and a sample."""
    paired = all(question.wrong_ids for row in encoded.questions for question in row)
    metric = "logit_difference" if paired else "log_probability"
    mean = ablation.mean_z(capture)
    most = top(np.abs(scores.mean(0)), FIRST)
    chosen = screen(model, encoded, metric, (mean,), also=most, exhaustive=exhaustive, seed=seed)
    intact = ablation.evaluate(model, encoded, (), metric)
    lost = intact[:, None, None] - ablation.ablate_each_head(
        model, encoded, metric, mean, heads=chosen.heads
    )
    return Lost(lost, metric, "logits" if paired else "nats", chosen.convention)


def add_effect(results: Results, lost: Lost) -> None:
    """Add what the answer loses without each head."""
    results.add_mean(
        "ablation_effect", GRID, lost.values, "What the answer loses by mean ablation of the head",
        lost.units, "diverging", evidence="causal", source="Wang et al. 2211.00593",
        convention=f"intact − ablated {lost.metric.replace('_', ' ')}, {lost.heads}",
    )  # fmt: skip


def add_ablation(
    results: Results,
    capture: xr.Dataset,
    model: Model,
    encoded: EncodedTask,
    scores: Array,
    what: str,
    *,
    exhaustive: bool,
    seed: int,
) -> Verdict:
    """Add what the answer loses without a head, and how that ranks the heads against ``scores``."""
    lost = mean_ablation(capture, model, encoded, scores, exhaustive=exhaustive, seed=seed)
    add_effect(results, lost)
    ends = agreement(scores, lost.values, seed)
    results.add_interval(
        "relevance_vs_ablation", (), ends, "Relevance of heads against mean ablation", "Spearman ρ",
        "diverging", -1, 1, convention=f"{OVER_HEADS}; {lost.heads}",
    )  # fmt: skip
    differing = f"(Spearman ρ {amount(ends[0])}), furthest apart {first(scores, lost.values)}."
    return interval_verdict(
        ends[1],
        f"{what} ranks heads like mean ablation does {differing}",
        f"{what} does not rank heads like mean ablation {differing}",
        f"One prompt has no interval for the rank correlation {differing}",
    )


def first(scores: Array, lost: Array) -> str:
    """Return the names of the heads that the two rank most differently."""
    return ", ".join(most_different(scores.mean(0), lost.mean(0)))


def token_coords(model: Model, target: Target) -> dict[str, Any]:
    """Return the coordinates of a target's text."""
    size = np.arange(len(target.ids))
    return {"query": size, "token": ("query", model.to_str_tokens(target.ids))}


def largest(scores: Array) -> str:
    """Return the names of the five heads with the largest absolute mean."""
    return ", ".join(label(head) for head in top(np.abs(scores.mean(0)), 5))

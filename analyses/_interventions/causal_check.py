"""Causal checks: what a task loses when heads are ablated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._runtime.results import ZERO_TO_ONE, Results, label
from headscope.analyses._runtime.verdict import Verdict, causal_verdict
from headscope.analyses._stats.bootstrap import bootstrap
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import amount

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

Head = tuple[int, int]
# Scores of every prompt with each set of heads ablated (prompt, set).
Measure = Callable[[Sequence[Sequence[Head]]], NDArray[np.float64]]

# Below this accuracy of the clean model an ablation has nothing to destroy.
SOLVED = 0.5


def random_sets(pool: Sequence[Head], size: int, draws: int, seed: int) -> list[tuple[Head, ...]]:
    """Draw ``draws`` sets of ``size`` heads from a pool that holds as many, without replacement."""
    generator = np.random.default_rng(seed)
    return [
        tuple(sorted(pool[index] for index in generator.permutation(len(pool))[:size]))
        for _ in range(draws)
    ]


def zero_ablation(model: Model, task: Task) -> Measure:
    """Return what scores a task by its accuracy with sets of heads ablated to zero."""
    from headscope.analyses._interventions.ablation import ablated_metric, encode_task

    encoded = encode_task(model, task)
    return lambda sets: ablated_metric(model, encoded, "accuracy", sets)


def compare(
    measure: Measure, groups: Mapping[str, Sequence[Sequence[Head]]]
) -> NDArray[np.float64]:
    """Score the clean model and each group of ablations (prompt, condition).

    A group is one or more sets of heads; its score is the mean over its sets, prompt by prompt.
    The first condition is the clean model.
    """
    sizes = [1, *map(len, groups.values())]
    scores = measure([(), *(heads for sets in groups.values() for heads in sets)])
    parts = np.split(scores, np.cumsum(sizes)[:-1], axis=1)
    return np.stack([part.mean(1) for part in parts], axis=1)


def check(
    name: str,
    title: str,
    model: Model,
    task: Task,
    top: Sequence[Head],
    pool: Sequence[Head],
    *,
    kind: str,
    draws: int,
    seed: int,
    others: Mapping[str, Sequence[Head]] | None = None,
    measure: Measure | None = None,
    score: str = "accuracy",
    ablation: str = "zero ablation",
) -> tuple[dict[str, xr.Variable], list[str], dict[str, Any]]:
    """Compare the accuracy of the clean model with top heads and random other heads ablated.

    ``top`` are the heads under test, called ``kind`` (such as ``"induction"``) in the conditions;
    ``draws`` random sets of as many are drawn from the rest of ``pool``. ``others`` are more sets
    to ablate, by name of the condition. ``measure`` scores and masks in another way; ``score`` and
    ``ablation`` are its names.

    Returns
    -------
    The variables, dims (condition,), with intervals over prompts; the conditions; a record with the
    heads of each condition, the accuracies, and the state and text of a verdict on the scores.
    """
    remaining = [head for head in pool if head not in set(top)]
    if len(remaining) < len(top):
        raise NotApplicable(
            f"heads: {len(top)} of {len(pool)} leave fewer than as many random others; "
            f"take {len(pool) // 2} or fewer"
        )
    groups: dict[str, Sequence[Sequence[Head]]] = {
        f"{kind} heads ablated": [top],
        **{condition: [heads] for condition, heads in (others or {}).items()},
        "random other heads ablated": random_sets(remaining, len(top), draws, seed),
    }
    samples = compare(measure or zero_ablation(model, task), groups)
    mean, lower, upper = bootstrap(samples, seed=seed)
    conditions = ["intact", *groups]
    record: dict[str, Any] = {
        "heads": {
            condition: [[label(head) for head in heads] for heads in head_sets]
            for condition, head_sets in groups.items()
        },
        "accuracy": dict(zip(conditions, mean.round(4).tolist(), strict=True)),
    }
    outcome = verdict(samples, f"{len(top)} {kind}", score)
    convention = (
        f"{score} on {len(samples)} prompts of {task.name}; {ablation} of the {len(top)} "
        f"{kind} heads, or of as many random others (mean of {draws} sets)"
    )
    results = Results(xr.Dataset(), evidence="causal")
    results.add_interval(
        name, ("condition",), (mean, lower, upper), title, "share of answers", *ZERO_TO_ONE,
        convention=convention, heads=record["heads"], note=outcome.text,
    )  # fmt: skip
    record |= {"verdict": outcome.state, "note": outcome.text}
    return results.variables, conditions, record


def verdict(samples: NDArray[np.float64], kind: str, score: str = "accuracy") -> Verdict:
    """Conclude in one sentence whether the ablation supports the score.

    ``samples`` (prompt, condition) are scores of the clean model, without the top heads, and, last,
    without random others.
    """
    intact, without_top, *_, without_random = map(amount, samples.mean(0))
    if samples[:, 0].mean() < SOLVED:
        return Verdict(
            "too_few",
            f"The clean model does not solve the task ({score} {intact}), so ablation cannot "
            f"show what the {kind} heads do; their score is correlational here.",
        )
    return causal_verdict(
        samples[:, -1] - samples[:, 1],
        f"{score} is {intact}, without the {kind} heads {without_top}, without as many random "
        f"others {without_random}",
        "; the score is correlational here",
    )

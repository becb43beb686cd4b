"""Contrast: heads that do something in one condition and not in another.

Condition A, the prompts of a task, is compared with condition B: their counterfactuals, or another
task. A statistic of every head, read where the prompts ask, gives an effect size (Cohen's d) with
an interval and a p value adjusted over the heads. The heads that stand out in A are then ablated:
it should cost A more than B, and more than as many other heads. Also measured is the weight of
heads in A on the rarest tokens of their context, against that of a uniform head.

Sources: Localizing Paragraph Memorization (a head that attends to rare tokens; contrast of
memorized and other paragraphs), Temporal Heads (ablation hurts one condition only).
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import xarray as xr

from headscope.analyses._interventions.causal_check import Head, random_sets
from headscope.analyses._measurements import without_first
from headscope.analyses._runtime.options import AtLeast, Between, OneOf
from headscope.analyses._runtime.results import GRID, SHARE, Results, heads, label, top
from headscope.analyses._runtime.verdict import LEAST_NATS, Verdict, causal_verdict
from headscope.analyses._stats import effect_size
from headscope.analyses._stats.bootstrap import Array, bootstrap
from headscope.analyses._stats.effect_size import exceeds_zero
from headscope.analyses.conditions import _conditions, _rare_tokens
from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.kernels.formatting import amount
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task

NEEDS = ()
TASK = "induction"
PROMPTS = 16
QUICK = {"draws": 1, "checked": 2}
SUPPORTS = {"hybrid"}

SOURCE = "Localizing Paragraph Memorization; Temporal Heads"
ABLATED = ("heads that stand out in A", "random other heads")
# What float64 still tells from 0.
SMALLEST_P = 1e-300


def run(
    model: Model,
    task: Task,
    *,
    other: str = "corrupted",
    statistics: str = "evidence entropy",
    rarest: Annotated[int, AtLeast(1)] = 5,
    least_spread: Annotated[float, AtLeast(1e-6)] = 0.01,
    false_rate: Annotated[float, Between(0, 1)] = 0.05,
    best: Annotated[int, AtLeast(1)] = 5,
    draws: Annotated[int, AtLeast(1)] = 3,
    checked: Annotated[int, AtLeast(1)] = 16,
    seed: int = 0,
) -> xr.Dataset:
    """Compare every head between two conditions, and ablate those that stand out in the first.

    Parameters
    ----------
    task
        Condition A: three prompts or more with questions.
    other
        Condition B: ``corrupted`` (the counterfactuals of the prompts, compared pair by pair), or
        the name or JSONL file of another task, of which as many prompts are made.
    statistics
        What is compared, separated by spaces; heads are chosen by the first. There are ``evidence``
        (weight on the tokens that hold the answer), ``entropy``, ``first``, ``previous``,
        ``largest``, ``distance`` and ``rare``. Entropy and distance are compared without the first
        token, too, which comes first where most attention lies there.
    rarest
        Tokens of a prompt that count as rare.
    least_spread
        Spread below which differences count as if they had this one, in the statistic's own unit: a
        head that changes alike on every prompt would have an effect without end.
    false_rate
        Adjusted p up to which a head stands out (rate of false discoveries), where also the
        interval of its effect lies above 0.
    best
        Heads with the largest effects, ablated in the causal check; half of all at most.
    draws
        Random sets of as many other heads.
    checked
        Prompts of each condition in the causal check.
    seed
        Seed of the random sets and of the bootstrap.

    Returns
    -------
    Dataset with ``effect`` (statistic, layer, head; Cohen's d, A − B), ``significance`` (statistic,
    layer, head; −log10 of p, adjusted by Benjamini and Hochberg over the heads), ``rare_mass`` and
    ``rare_enrichment`` (layer, head; of condition A, the latter times what a uniform head gives)
    and, where heads stand out, ``lost`` (text, ablated; nats that the model's own answers lose),
    with 95 % intervals over prompts.
    """
    model.check_predicts()
    names = _statistic_names(statistics)
    if len(task) < 3:
        raise NotApplicable(f"n: {len(task)} prompts have no spread to speak of; ask for 3 or more")

    paired = other == _conditions.CORRUPTED
    conditions = _conditions.pair(model, task, other)
    rare = [_rare_tokens.rarest(condition.ids, rarest) for condition in conditions]
    names = _with_variants(names)
    (first, capture), (second, _) = (
        _conditions.read_heads(
            model, conditions[0], list(dict.fromkeys([*names, "rare"])), rare[0]
        ),
        _conditions.read_heads(model, conditions[1], names, rare[1]),
    )
    if "first_mass" in capture and without_first.first_dominates(capture):
        names = _with_variants(names, first=True)
    # Where it is weight on tokens that chooses heads, the first token hides nothing.
    sinks = names[0].endswith(without_first.SUFFIX)
    remark = without_first.dominance_note(capture).strip() if sinks else ""
    ends, p = _effects(
        [(first[name], second[name]) for name in names], least_spread, paired=paired, seed=seed
    )

    named = [f"A: {conditions[0].name}", f"B: {conditions[1].name}"]
    convention = f"{', '.join(named)}; {len(task)} prompts each, read where they ask"
    results = Results(capture, seed=seed, source=SOURCE, evidence="correlational")
    definitions = "; ".join(f"{name}: {_conditions.STATISTICS[name][2]}" for name in names)
    results.add_interval(
        "effect", ("statistic", *GRID), ends, "Effect of the condition, A − B", "Cohen's d",
        "diverging", convention=f"{'paired, d_z' if paired else 'pooled spread'}; a spread below "
        f"{least_spread:g} counts as that; {definitions}; {convention}",
    )  # fmt: skip
    results.add(
        "significance", ("statistic", *GRID), -np.log10(np.maximum(p, SMALLEST_P)),
        "Significance of the effect", "−log10 adjusted p", "sequential", 0,
        source="Benjamini and Hochberg 1995",
        convention=f"two-sided t test, {'of pairs' if paired else 'of two samples'}, adjusted over "
        f"heads for each statistic; 1.3 is p = 0.05; {convention}",
    )  # fmt: skip
    rarity = (
        f"the {rarest} tokens of a prompt that are rarest among {len(task)} prompts, half of it at "
        "most; first position left out"
    )
    uniform = _conditions.expected_rare(conditions[0], rare[0], model.geometry.causal)
    with np.errstate(invalid="ignore", divide="ignore"):
        times = np.where(uniform > 0, 1 / uniform, np.nan)[:, None, None] * first["rare"]
    results.add_means(
        ("rare_mass", GRID, first["rare"], "Weight on rare tokens", SHARE,
         f"{rarity}; {conditions[0].name}"),
        ("rare_enrichment", GRID, times, "Weight on rare tokens, against a uniform head",
         ("times uniform", "sequential", 0),
         f"{rarity}; 1: as a uniform head; {conditions[0].name}"),
    )  # fmt: skip

    pool, difference = heads(capture), names[0].replace("_", " ")
    significant = (p[0] <= false_rate) & (ends[1][0] > 0)
    chosen = top(np.where(significant, ends[0][0], np.nan), min(best, len(pool) // 2))
    coords: dict[str, list[str]] = {"statistic": names}
    if not chosen:
        verdict = Verdict(
            "too_few",
            f"No head has more {difference} in A than in B (adjusted p ≤ {false_rate:g}), so none "
            "is ablated.",
        )
    else:
        sets = random_sets([head for head in pool if head not in chosen], len(chosen), draws, seed)
        costs = _costs(model, conditions, (chosen, *sets), checked)
        lost = np.stack([np.stack(bootstrap(cost, seed=seed)) for cost in costs], axis=1)
        results.add_interval(
            "lost", ("text", "ablated"), lost, "What the model's own answers lose", "nats",
            "diverging", evidence="causal",
            convention="fall of the log-probability of the unablated model's likeliest token; "
            f"{len(chosen)} heads set to zero, or as many random others (mean of {draws} sets); "
            f"{len(costs[0])} prompts; {convention}",
        )  # fmt: skip
        coords |= {"text": named, "ablated": list(ABLATED)}
        verdict = _verdict(costs, len(chosen), difference)
    return results.dataset(
        coords,
        verdict,
        remark,
        convention=convention,
        task=task.name,
        seed=task.seed,
        heads_by_type={f"more {difference} in A": [label(head) for head in chosen]},
    )


def _statistic_names(statistics: str) -> list[str]:
    """Read the names of statistics, separated by spaces."""
    names = list(dict.fromkeys(statistics.split()))
    if not names:
        raise InvalidInput("statistics: there are none; give at least one, such as evidence")
    for name in names:
        OneOf(_conditions.STATISTICS).check("statistics", name)
    return names


def _with_variants(names: list[str], *, first: bool = False) -> list[str]:
    """Add entropy and distance without the first token, before the whole rows or behind.

    >>> _with_variants(["first", "entropy"], first=True)
    ['first', 'entropy_without_first', 'entropy']
    """
    ends = {"entropy": ("", without_first.SUFFIX), "distance": ("", without_first.SUFFIX)}
    varied = [name + end for name in names for end in sorted(ends.get(name, [""]), reverse=first)]
    return list(dict.fromkeys(varied))


def _effects(
    samples: Sequence[tuple[Array, Array]], least_spread: float, *, paired: bool, seed: int
) -> tuple[Array, Array]:
    """Return effects (end, statistic, layer, head) and adjusted p (statistic, layer, head)."""
    ends = [
        np.stack(effect_size.intervals(*pair, least_spread, paired=paired, seed=seed))
        for pair in samples
    ]
    p = [
        effect_size.adjusted(effect_size.p_values(*pair, least_spread, paired=paired))
        for pair in samples
    ]
    return np.stack(ends, axis=1), np.stack(p)


def _costs(
    model: Model,
    conditions: Sequence[_conditions.Condition],
    groups: Sequence[Sequence[Head]],
    checked: int,
) -> list[Array]:
    """Ablate the first group, and the others for comparison, per condition (prompt, ablated)."""
    costs = []
    for condition in conditions:
        cost = _conditions.lost(model, condition, groups, checked)
        costs.append(np.stack([cost[:, 0], cost[:, 1:].mean(1)], axis=1))
    return costs


def _verdict(costs: list[Array], size: int, name: str) -> Verdict:
    """Conclude whether ablation costs A more than B, and more than other heads do."""
    costs_in_a, costs_in_b = costs
    in_a, random, in_b = costs_in_a[:, 0].mean(), costs_in_a[:, 1].mean(), costs_in_b[:, 0].mean()
    text = (
        f"without the {size} heads that have more {name} in A its answers lose {amount(in_a)} "
        f"nats, those of B {amount(in_b)}; without as many random others A loses {amount(random)}"
    )
    # As many prompts of B, paired or drawn for themselves: then any order pairs them.
    over = costs_in_a[:, :1] - np.stack([costs_in_b[:, 0], costs_in_a[:, 1]], axis=1) - LEAST_NATS
    above = exceeds_zero(over)
    failed = [
        name for name, is_above in zip(("B", "random heads do"), above, strict=True) if not is_above
    ]
    return causal_verdict(over, text, f"; no more than {', nor than '.join(failed)}")

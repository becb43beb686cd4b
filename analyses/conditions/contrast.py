"""Contrast: heads that do something in one condition and not in another.

Condition A, the prompts of a task, is held against condition B: their corrupted twins, or another
task. A statistic of every head, read where the prompts ask, gives an effect size (Cohen's d) with
an interval and a p value adjusted over the heads. The heads that stand out in A are then taken out:
it should cost A more than B, and more than as many other heads. Beside it stands the weight that
heads of A give to the rarest tokens of their context, against what a uniform head would give.

Sources: Localizing Paragraph Memorization (a head that attends to rare tokens; contrast of
memorized and other paragraphs), Temporal Heads (ablation hurts one condition only).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.causal_check import Progress, random_sets
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import (
    averaged,
    dataset,
    heads,
    interval,
    label,
    top,
    variable,
)
from headscope.analyses._stats import effect_size
from headscope.analyses._stats.bootstrap import bootstrap
from headscope.analyses.conditions import _conditions, _rare_tokens
from headscope.kernels.errors import InvalidInput, NotApplicable

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

NEEDS = ()
TASK = "induction"
PROMPTS = 16

SOURCE = "Localizing Paragraph Memorization; Temporal Heads"
ABLATED = ("heads that stand out in A", "random other heads")
# A difference below this is no effect to speak of.
LEAST_NATS = 0.01
# What float64 still tells from 0.
SMALLEST_P = 1e-300
Array = NDArray[np.float64]


def run(
    model: Model,
    task: Task,
    *,
    other: str = "corrupted",
    statistics: str = "evidence entropy",
    rarest: int = 5,
    least_spread: float = 0.01,
    false_rate: float = 0.05,
    best: int = 5,
    draws: int = 3,
    checked: int = 12,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Compare every head between two conditions, and take out those that stand out in the first.

    Parameters
    ----------
    model
        Causal language model that answers.
    task
        Condition A: prompts with questions.
    other
        Condition B: ``corrupted`` (the twins of the prompts, compared pair by pair), or the name or
        JSONL file of another task, of which as many prompts are made.
    statistics
        What is compared, separated by spaces; heads are chosen by the first. There are ``evidence``
        (weight on the tokens that hold the answer), ``entropy``, ``first``, ``previous``,
        ``largest``, ``distance`` and ``rare``.
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
    progress
        Called with (done, total) prompts of the causal check, in each condition.

    Returns
    -------
    Dataset with ``effect`` (statistic, layer, head; Cohen's d, A − B), ``significance`` (statistic,
    layer, head; −log10 of p, adjusted by Benjamini and Hochberg over the heads), ``rare_mass`` and
    ``rare_enrichment`` (layer, head; of condition A, the latter times what a uniform head gives)
    and, where heads stand out, ``lost`` (text, ablated; nats that the model's own answers lose),
    with 95 % intervals over prompts.

    Raises
    ------
    HeadscopeError
        For a model that predicts no next token, fewer than 3 prompts, an unknown statistic, or an
        option out of range.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> options = {"draws": 1, "checked": 1}
    >>> result = execute("contrast", load_model("headscope/bundled"), n=3, options=options)
    >>> result["effect"].dims
    ('statistic', 'layer', 'head')
    """
    model.check_predicts()
    for name, value in (
        ("rarest", rarest), ("best", best), ("draws", draws), ("checked", checked),
    ):  # fmt: skip
        options.at_least(name, value, 1)
    options.between("false_rate", false_rate, 0, 1)
    options.at_least("least_spread", least_spread, 1e-6)
    names = list(dict.fromkeys(statistics.split()))
    if not names:
        raise InvalidInput("statistics: there are none; give at least one, such as evidence")
    for name in names:
        options.one_of("statistics", name, _conditions.STATISTICS)
    if len(task) < 3:
        raise NotApplicable(f"n: {len(task)} prompts have no spread to speak of; ask for 3 or more")

    paired = other == _conditions.CORRUPTED
    both = _conditions.pair(model, task, other)
    rare = [_rare_tokens.rarest(each.ids, rarest) for each in both]
    wanted = [*names, *(("rare",) if "rare" not in names else ())]
    (first, known), (second, _) = (
        _conditions.read_heads(model, each, wanted if at == 0 else names, rare[at])
        for at, each in enumerate(both)
    )

    grid = ("layer", "head")
    rows = [
        effect_size.intervals(
            first[name], second[name], least_spread, paired=paired, seed=seed
        ) for name in names
    ]  # fmt: skip
    mean, lower, upper = (np.stack(each) for each in zip(*rows, strict=True))
    p = np.stack([
        effect_size.adjusted(
            effect_size.p_values(first[name], second[name], least_spread, paired=paired)
        ) for name in names
    ])  # fmt: skip
    how = "paired, d_z" if paired else "pooled spread"
    read = "; ".join(f"{name}: {_conditions.STATISTICS[name][2]}" for name in names)
    said = f"A: {both[0].name}, B: {both[1].name}; {len(task)} prompts each, read where they ask"
    variables = interval(
        "effect", ("statistic", *grid), mean, lower, upper, "Effect of the condition, A − B",
        "Cohen's d", "diverging", source=SOURCE, evidence="correlational",
        convention=f"{how}; a spread below {least_spread:g} counts as that; {read}; {said}",
    )  # fmt: skip
    variables["significance"] = variable(
        ("statistic", *grid), -np.log10(np.maximum(p, SMALLEST_P)), "Significance of the effect",
        "−log10 adjusted p", "sequential", 0, source="Benjamini and Hochberg 1995",
        evidence="correlational",
        convention=f"two-sided t test, {'of pairs' if paired else 'of two samples'}, adjusted over "
        f"heads for each statistic; 1.3 is p = 0.05; {said}",
    )  # fmt: skip
    share = _conditions.expected_rare(both[0], rare[0], model.geometry.causal)
    told = (
        f"the {rarest} tokens of a prompt that are rarest among {len(task)} prompts, half of it at "
        "most; first position left out"
    )
    variables |= averaged(
        "rare_mass", grid, first["rare"], "Weight on rare tokens", "share", "sequential", 0, 1,
        seed=seed, source=SOURCE, evidence="correlational", convention=f"{told}; {both[0].name}",
    )  # fmt: skip
    with np.errstate(invalid="ignore", divide="ignore"):
        times = np.where(share > 0, 1 / share, np.nan)[:, None, None] * first["rare"]
    variables |= averaged(
        "rare_enrichment", grid, times, "Weight on rare tokens, against a uniform head",
        "times uniform", "sequential", 0, seed=seed, source=SOURCE, evidence="correlational",
        convention=f"{told}; 1: as a uniform head; {both[0].name}",
    )  # fmt: skip

    pool = heads(known)
    stands = (p[0] <= false_rate) & (lower[0] > 0)
    chosen = top(np.where(stands, mean[0], np.nan), min(best, len(pool) // 2))
    coords: dict[str, list[str]] = {"statistic": names}
    if not chosen:
        note = (
            f"INCONCLUSIVE: no head has more {names[0]} in A than in B (adjusted p ≤ "
            f"{false_rate:g}), so none is ablated."
        )
    else:
        sets = random_sets([one for one in pool if one not in chosen], len(chosen), draws, seed)
        costs = []
        for each in both:
            cost = _conditions.lost(model, each, (chosen, *sets), checked, progress)
            costs.append(np.stack([cost[:, 0], cost[:, 1:].mean(1)], axis=1))
        ends = np.stack([np.stack(bootstrap(each, seed=seed)) for each in costs], axis=1)
        variables |= interval(
            "lost", ("text", "ablated"), *ends, "What the model's own answers lose", "nats",
            "diverging", source=SOURCE, evidence="causal",
            convention=f"fall of the log-probability of the intact model's likeliest token; "
            f"{len(chosen)} heads set to zero, or as many random others (mean of {draws} sets); "
            f"{len(costs[0])} prompts; {said}",
        )  # fmt: skip
        coords |= {"text": [f"A: {both[0].name}", f"B: {both[1].name}"], "ablated": list(ABLATED)}
        note = _verdict(costs, len(chosen), names[0], paired, seed)
    return dataset(
        known,
        variables,
        coords,
        convention=said,
        task=task.name,
        seed=task.seed,
        heads_by_type={f"more {names[0]} in A": [label(head) for head in chosen]},
        note=note,
    )


def _verdict(costs: list[Array], size: int, name: str, paired: bool, seed: int) -> str:
    """Say whether ablation costs A more than B, and more than other heads do."""
    here, there = costs
    own, random, foreign = here[:, 0].mean(), here[:, 1].mean(), there[:, 0].mean()
    said = (
        f"without the {size} heads that have more {name} in A its answers lose {own:.3f} nats, "
        f"those of B {foreign:.3f}; without as many random others A loses {random:.3f}"
    )
    over_b = effect_size.difference(here[:, 0], there[:, 0], paired=paired, seed=seed)[1]
    over_random = effect_size.difference(here[:, 0], here[:, 1], paired=True, seed=seed)[1]
    if np.isnan(over_b) or np.isnan(over_random):
        return f"INCONCLUSIVE (one prompt has no interval): {said}."
    failed = [
        what
        for what, holds in (
            ("A more than B", over_b > LEAST_NATS),
            ("A more than random heads do", over_random > LEAST_NATS),
        )
        if not holds
    ]
    if not failed:
        return f"Causal check agrees: {said}."
    return f"DISAGREEMENT: the heads do not hurt {', nor '.join(failed)}: {said}."

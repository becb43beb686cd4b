"""Reliability: how far the importance of heads can be trusted.

Every method that ranks heads is asked four things. Does it agree with the others (rank correlation
over heads)? Would other prompts say the same (split-half reliability, stepped up by Spearman and
Brown's formula)? Would other names and templates of the same task (a second draw)? And do scores
exceed those where there is nothing to find: with every prompt asked for the answer of another one,
and in a model of the same config with random weights? A head is called important only where the
interval of its mean ablation lies above what the largest head reaches in both.

Sources: Michel et al. (1905.10650); Spearman (1910) and Brown (1910); Adebayo et al., Sanity Checks
for Saliency Maps (1810.03292).
"""

from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import xarray as xr

from headscope import probes
from headscope.analyses._interventions import ablation
from headscope.analyses._interventions.metrics import METRICS, UNITS
from headscope.analyses._interventions.random_weights import untrained
from headscope.analyses._interventions.screening import screen
from headscope.analyses._runtime.options import OneOf
from headscope.analyses._runtime.results import Results, first_few, label, require, top
from headscope.analyses._runtime.verdict import Verdict
from headscope.analyses._stats.bootstrap import Array, bootstrap
from headscope.analyses._stats.effect_size import LEAST_PROMPTS
from headscope.analyses._stats.rank_correlation import (
    OVER_HEADS,
    agreement,
    matrix,
    most_different,
    split_half,
)
from headscope.analyses.head_importance._method_scores import losses, scores
from headscope.analyses.head_importance._nulls import important, shuffled, threshold
from headscope.kernels.formatting import amount
from headscope.probes.models.model import Model
from headscope.probes.prompts import tasks
from headscope.probes.prompts.task import Task

NEEDS = ()
KEEP = ("z",)
TASK = "ioi"
PROMPTS = 16
SUPPORTS = {"hybrid"}

SOURCE = "Michel et al. 1905.10650"
RETEST = "Spearman 1910; Brown 1910"
SANITY = "Adebayo et al. 1810.03292"
CONDITIONS = ("largest head", "shuffled answers", "random weights")


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    metric: Annotated[str, OneOf(METRICS)] = "task",
    paraphrase: bool = True,
    random_weights: bool = True,
    exhaustive: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Compare the methods that rank heads with each other, on other prompts, and with nulls.

    Parameters
    ----------
    capture, model, task
        Capture of the task whose metric is followed, with the kept ``z``.
    metric
        As in ``importance``. Gradients of accuracy follow the log-probability of the answers.
    paraphrase
        Whether a second draw of the task is made: other names, places and templates. A task of your
        own file cannot be drawn again.
    random_weights
        Whether a model of the same config with random weights is measured; it needs as much memory
        as the model itself.
    exhaustive
        Ablate every head, whatever their number. Without it, in a model of more than 64 heads:
        those that gradients rank first, and a random sample of the others.
    seed
        Seed of the bootstrap, the sample of heads, the splits, the shuffled answers and the random
        weights.

    Returns
    -------
    Dataset with ``rank_agreement`` (one, other; Spearman ρ over heads between
    methods), ``retest`` (ranking; split-half reliability), ``paraphrase_agreement`` (ranking; ρ
    with the second draw), ``null_level`` (condition; the largest mean ablation, and what the
    largest head reaches under each null; the nulls without an interval), ``margin`` (layer, head;
    the lower end of the mean ablation over the larger null, positive for an important head) and
    ``untrained_agreement`` (ρ between gate gradient and zero ablation in the model with random
    weights). ``important_heads`` in the attributes names the heads of positive margin.
    """
    require(capture, KEEP, "reliability")
    name = task.metric if metric == "task" else metric
    again = paraphrase and task.name in tasks.names()
    second: dict[str, Array] = {}
    shared: Any = {"exhaustive": exhaustive, "seed": seed}
    methods, left_out, chosen = scores(model, task, capture, name, **shared)
    answers = shuffled(ablation.encode_task(model, task).questions, seed)
    levels = {"shuffled answers": _null(capture, model, task, name, answers, **shared)}
    if again:
        other_draw = tasks.make(task.name, model.tokenizer, n=len(task), seed=task.seed + 1)
        other = probes.capture(model, other_draw, stats=(), keep=KEEP)
        second, _, _ = scores(model, other_draw, other, name, **shared)
    if random_weights:
        blank = untrained(model, seed, "random_weights")
        cap = probes.capture(blank, task, stats=(), keep=KEEP)
        levels["random weights"] = _null(cap, blank, task, name, None, **shared)
        blank_agreement = agreement(*losses(blank, task, name, **shared), seed)

    units, count = UNITS[name], len(task)
    convention = f"{name.replace('_', ' ')} on {count} prompts of {task.name}"
    least, methods_known = max(levels.values()), list(methods)
    mean, lower, upper = bootstrap(methods["mean ablation"], seed=seed)
    heads = important(lower, least)
    [best] = top(mean, 1)
    bars = np.full((3, len(CONDITIONS)), np.nan)
    bars[:, 0] = mean[best], lower[best], upper[best]
    for index, key in enumerate(CONDITIONS[1:], start=1):
        bars[:, index] = levels.get(key, np.nan)
    table = matrix(methods, seed)
    retest = np.array([split_half(samples, seed) for samples in methods.values()]).T
    results = Results(capture, seed=seed, source=SANITY, convention=convention)
    results.add_interval(
        "rank_agreement", ("one", "other"), table, "Agreement of methods on the heads",
        "Spearman ρ", "diverging", -1, 1, source=SOURCE, convention=f"{OVER_HEADS}; {convention}",
    )  # fmt: skip
    results.add_interval(
        "retest", ("ranking",), retest, "Test–retest reliability", "2r / (1 + r)", "diverging",
        -1, 1, source=RETEST,
        convention="rank correlation r over heads between random halves of the prompts, "
        f"stepped up to all of them; mean and central 95 % of 50 splits; {convention}",
    )  # fmt: skip
    results.add_interval(
        "null_level", ("condition",), bars, "Mean ablation against where there is nothing",
        units, "diverging", evidence="causal",
        convention="largest head with its interval; nulls: 95th percentile over resamples of "
        f"the largest head's mean ablation; {convention}",
    )  # fmt: skip
    results.add(
        "margin", ("layer", "head"), lower - least,
        "Lower end of the mean ablation over the nulls", units, "diverging", evidence="causal",
        convention=f"positive: important; null {amount(least)} {units}, the larger of "
        f"{' and '.join(levels)}; {chosen.convention}; {convention}",
    )  # fmt: skip
    if again:
        ends = [agreement(methods[key], second[key], seed, paired=False) for key in methods]
        results.add_interval(
            "paraphrase_agreement", ("ranking",), np.array(ends).T,
            "Agreement with another draw of the task", "Spearman ρ", "diverging", -1, 1,
            source=SOURCE,
            convention=f"{OVER_HEADS}, other names and templates (seed {task.seed + 1}); "
            f"{convention}",
        )  # fmt: skip
    if random_weights:
        results.add_interval(
            "untrained_agreement", (), blank_agreement,
            "Gate gradient against zero ablation with random weights", "Spearman ρ", "diverging",
            -1, 1, convention=f"same config, weights of the initialiser; {convention}",
        )  # fmt: skip
    coords: dict[str, Any] = dict.fromkeys(("one", "other", "ranking"), methods_known)
    notes = [] if chosen.complete else [chosen.missed(lower > least)]
    notes += [f"Without direct logits: {left_out}"] if left_out else []
    if paraphrase and not again:
        notes.append("A task of one's own cannot be drawn again, so there is no second draw.")
    return results.dataset(
        {**coords, "condition": list(CONDITIONS)},
        _verdict(methods, table[0], retest[0], heads),
        " ".join(notes),
        top_heads=[label(head) for head in top(mean, 5)],
        important_heads=heads,
    )


def _null(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    metric: str,
    answers: Any,
    *,
    exhaustive: bool,
    seed: int,
) -> float:
    """Return what the largest head's mean ablation reaches where there is nothing to find."""
    encoded, mean = ablation.encode_task(model, task), ablation.mean_z(capture)
    chosen = screen(model, encoded, metric, (mean,), exhaustive=exhaustive, seed=seed)
    if answers is not None:
        encoded = replace(encoded, questions=answers)
    clean = ablation.evaluate(model, encoded, (), metric)[:, None, None]
    ablated = ablation.ablate_each_head(model, encoded, metric, mean, heads=chosen.heads)
    return threshold(clean - ablated, seed)


def _verdict(methods: dict[str, Array], table: Array, retest: Array, heads: list[str]) -> Verdict:
    names, count = list(methods), len(next(iter(methods.values())))
    if count < LEAST_PROMPTS:
        text = f"Too few prompts ({count} of {LEAST_PROMPTS}) to call a head important."
        verdict = Verdict("too_few", text)
    else:
        listed = f": {first_few(heads)}" if heads else ""
        weak = int(np.nanargmin(retest)) if not np.isnan(retest).all() else 0
        verdict = Verdict(
            "supported" if heads else "not_supported",
            f"Heads above both nulls: {len(heads)}{listed}. "
            f"Least reliable: {names[weak]} ({amount(retest[weak])} with {count} prompts).",
        )
    pairs = [
        (table[row, column], names[row], names[column])
        for row in range(len(names))
        for column in range(row)
        if not np.isnan(table[row, column])
    ]
    if not pairs:
        return verdict
    rho, first, second = min(pairs)
    ends = most_different(methods[first].mean(0), methods[second].mean(0), 2)
    text = (
        f"{first} and {second} agree least (Spearman ρ {amount(rho)}); furthest apart "
        f"{' and '.join(ends)}."
    )
    return verdict & Verdict("disagreement" if rho < 0.5 else "supported", text)

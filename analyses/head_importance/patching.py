"""Patching: one head's output swapped between the clean and the corrupted prompt.

Noising runs the clean prompt with the head's output of the corrupted one: the loss says what the
head is needed for. Denoising runs the corrupted prompt with the head's clean output: the gain says
what the head alone is enough for. The two differ where heads back each other up (neither is needed)
or work in series (neither is enough). Both are compared with attribution patching, their linear
estimate ``(z_clean − z_corrupted) · ∂m/∂z``, with the gradient on the clean prompt for noising and
on the corrupted one for denoising: one backward pass for all heads. It is exact on a linear model.

Sources: Heimersheim & Nanda, How to use and interpret activation patching (2404.15255); Nanda,
Attribution Patching (2023); Syed et al., Attribution Patching Outperforms ACDC (2310.10348).
"""

from typing import Annotated

import numpy as np
import xarray as xr

from headscope.analyses._interventions.ablation import encode_task
from headscope.analyses._interventions.metrics import METRICS, UNITS, differentiable
from headscope.analyses._runtime.options import OneOf
from headscope.analyses._runtime.results import Results, label, require, top
from headscope.analyses._runtime.verdict import Verdict, interval_verdict
from headscope.analyses._stats.bootstrap import bootstrap
from headscope.analyses._stats.rank_correlation import OVER_HEADS, agreement, most_different
from headscope.analyses.head_importance._method_scores import patch_both_ways
from headscope.kernels.formatting import amount, percent
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task

NEEDS = ()
KEEP = ("z",)
TASK = "ioi"
PROMPTS = 32
SUPPORTS = {"hybrid"}

SOURCE = "Heimersheim & Nanda 2404.15255"
LINEAR = "Nanda 2023, attribution patching"
# Variable, title, how it is measured, and the prompt whose gradient estimates it.
PATCHES = (
    ("noising", "Lost with the head's corrupted output (noising)",
     "clean − patched: clean prompt, z of the corrupted one at all positions", "clean"),
    ("denoising", "Won back with the head's clean output (denoising)",
     "patched − corrupted: corrupted prompt, z of the clean one at all positions", "corrupted"),
)  # fmt: skip


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    metric: Annotated[str, OneOf(METRICS)] = "task",
    exhaustive: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Patch every head both ways between clean and corrupted prompts, and estimate it linearly.

    Parameters
    ----------
    capture, model, task
        Capture of the task whose metric is followed, with the kept ``z``: the outputs on the clean
        prompts. Its questions are asked of the corrupted prompts, too.
    metric
        ``task`` (the task's own), ``logit_difference``, ``probability_difference``,
        ``log_probability`` or ``accuracy``. Accuracy has no gradient; attribution then follows the
        log-probability of the answers.
    exhaustive
        Patch every head, whatever their number. Without it, in a model of more than 64 heads:
        those that gradients rank first, and a random sample of the others.
    seed
        Seed of the bootstrap over prompts, and of the sample of heads.

    Returns
    -------
    Dataset with ``noising`` (layer, head; the metric lost on the clean prompt),
    ``denoising`` (layer, head; the metric won on the corrupted prompt), ``noising_attribution`` and
    ``denoising_attribution`` (layer, head; their linear estimates), ``clean`` and ``corrupted``
    (the metric without a patch), and the Spearman rank correlations of absolute scores
    ``noising_agreement``, ``denoising_agreement`` (patching against its estimate) and
    ``noising_vs_denoising``. Positive numbers help the clean answer. All with 95 % intervals over
    prompts.
    """
    require(capture, KEEP, "patching")
    name = task.metric if metric == "task" else metric
    smooth, encoded = differentiable(name), encode_task(model, task)
    levels, effects, estimates, chosen = patch_both_ways(
        model, encoded, capture, name, exhaustive=exhaustive, seed=seed
    )

    units, metric_name = UNITS[name], name.replace("_", " ")
    convention = f"{metric_name} on {len(task)} prompts of {task.name}"
    results = Results(capture, seed=seed, source=SOURCE, convention=convention)
    for key, title, meaning, side in PATCHES:
        results.add_mean(
            key, ("layer", "head"), effects[key], title, units, "diverging", evidence="causal",
            convention=f"{meaning}, one query head at a time, {chosen.convention}; {convention}",
        )  # fmt: skip
        results.add_mean(
            f"{key}_attribution", ("layer", "head"), estimates[key],
            f"Attribution patching ({key})", UNITS[smooth], "diverging", source=LINEAR,
            convention=f"(z clean − z corrupted) · ∂m/∂z on the {side} prompt, summed over "
            f"positions; m: {smooth}; {convention}",
        )  # fmt: skip
    for side, values in levels.items():
        title = f"{metric_name.capitalize()} on the {side} prompt"
        results.add_mean(side, (), values, title, units, "diverging")
    noising, denoising, linear, linear_back = *effects.values(), *estimates.values()
    for key, title, first, second in (
        ("noising_agreement", "Noising against its linear estimate", noising, linear),
        ("denoising_agreement", "Denoising against its linear estimate", denoising, linear_back),
        ("noising_vs_denoising", "Noising against denoising", noising, denoising),
    ):
        results.add_interval(
            key, (), agreement(first, second, seed), title, "Spearman ρ", "diverging", -1, 1,
            convention=OVER_HEADS,
        )  # fmt: skip
    return results.dataset(
        verdict=_verdict(results, levels),
        top_heads=[label(head) for head in top(results["denoising"].values, 5)],
    )


def _verdict(results: Results, levels: dict[str, np.ndarray]) -> Verdict:
    rise = levels["clean"] - levels["corrupted"]
    gap, lower = float(rise.mean()), float(bootstrap(rise, seed=results.seed)[1])
    if gap <= 0:
        return Verdict(
            "too_few",
            "The corrupted prompts do no worse than the clean ones, so there is nothing to carry "
            "over.",
        )
    best = float(np.nanmax(results["denoising"].values))
    text = f"From the corrupted to the clean prompt the metric rises by {amount(gap)}"
    verdict = interval_verdict(
        lower,
        f"{text}; the largest single head wins back {percent(best / gap)} of it.",
        f"{text}, which is not above 0 with its interval, and by {amount(best)} with the largest "
        "single head.",
        f"{text}, and by {amount(best)} with the largest single head.",
    )
    for key in ("noising", "denoising"):
        rho, lower = (float(results[f"{key}_agreement{end}"].values) for end in ("", "_lower"))
        pair = most_different(results[key].values, results[f"{key}_attribution"].values, 2)
        verdict &= interval_verdict(
            lower,
            f"Attribution ranks heads like {key} does (Spearman ρ {amount(rho)}), least so "
            f"{' and '.join(pair)}.",
            f"Attribution does not rank heads like {key} (Spearman ρ {amount(rho)}); trust the "
            "patches.",
        )
    return verdict

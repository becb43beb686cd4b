"""Head importance: what a task loses when one head is ablated.

Every head in turn is set to zero, to its mean output, and to its output on the corrupted prompt
(resampled); the drop of the task's metric is the causal importance. The three differ: zero removes
everything a head writes, the mean leaves what it always writes, and resampling removes only the
difference between the clean and the corrupted prompt. Two variants of the mean: leaving the first
token alone, where many models have a sink that all later heads use, and ablating all query heads of
a KV group at once. They are compared with two gradients of gates ξ_h that multiply the heads'
outputs: the gate gradient ``I_h = E_x |∂m/∂ξ_h|`` at ξ = 1, one backward pass in place of one
forward pass a head, absolute value per prompt, before the mean; and its integral from no heads (ξ =
0) to all (ξ = 1), which sums over heads to the metric that all heads bring.

A head is called important only where the interval of its mean ablation lies above what the largest
head reaches when every prompt is asked for the answer of another one.

In a model of many heads the ablations are of those that gradients rank first and of a random sample
of the others, which says what that misses; gradients are of all heads.

Sources: Michel et al., Are Sixteen Heads Really Better than One? (1905.10650); Sundararajan et al.,
Axiomatic Attribution for Deep Networks (1703.01365).
"""

from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import xarray as xr
from torch import Tensor

from headscope.analyses._interventions import ablation, head_gradients
from headscope.analyses._interventions.metrics import METRICS, UNITS, AnswerMetric, differentiable
from headscope.analyses._interventions.screening import Screen, screen
from headscope.analyses._runtime.options import Between, OneOf
from headscope.analyses._runtime.results import Results, first_few, label, require, top
from headscope.analyses._runtime.verdict import Verdict
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses._stats.effect_size import LEAST_PROMPTS
from headscope.analyses._stats.rank_correlation import OVER_HEADS, agreement, most_different
from headscope.analyses.head_importance._nulls import important, shuffled, threshold
from headscope.kernels.formatting import amount
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tokens import EncodedTask

NEEDS = ()
KEEP = ("z",)
TASK = "ioi"
PROMPTS = 16
SUPPORTS = {"hybrid"}

SOURCE = "Michel et al. 1905.10650"
INTEGRAL = "Michel et al. 1905.10650; Sundararajan et al. 1703.01365"
INTEGRATED = "Integrated gate gradient against zero ablation"
# By variable: what stands in for the head, and how it is measured.
ABLATIONS = {
    "zero_ablation": ("set to zero", "intact − ablated"),
    "mean_ablation": (
        "set to its mean", "intact − ablated, mean of z over positions and clean prompts",
    ),
    "resample_ablation": (
        "its output on the corrupted prompt",
        "intact − patched with z of the corrupted prompt, all positions",
    ),
    "sink_free_ablation": (
        "its mean, but at the first token",
        "mean ablation at every position but the first, where a sink stands",
    ),
}  # fmt: skip
# Variable, title, and the two scores whose ranks are compared.
AGREEMENTS = (
    ("gate_vs_zero", "Gate gradient against zero ablation", "gate", "zero_ablation"),
    ("gate_vs_mean", "Gate gradient against mean ablation", "gate", "mean_ablation"),
    ("integrated_vs_zero", INTEGRATED, "integral", "zero_ablation"),
    ("zero_vs_mean", "Zero ablation against mean ablation", "zero_ablation", "mean_ablation"),
    ("zero_vs_resample", "Zero ablation against resampling", "zero_ablation", "resample_ablation"),
)


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    metric: Annotated[str, OneOf(METRICS)] = "task",
    normalize: bool = False,
    tolerance: Annotated[float, Between(1e-4, 1)] = 0.05,
    exhaustive: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Ablate every head in turn, and compare gradients of its gate with what that does.

    Parameters
    ----------
    capture, model, task
        Capture of the task whose metric is followed, with the kept ``z``: the mean ablation puts
        each head's mean output, over all positions of the clean prompts, in its place.
    metric
        ``task`` (the task's own), ``logit_difference``, ``probability_difference``,
        ``log_probability`` or ``accuracy``. Accuracy has no gradient; the gates then follow the
        log-probability of the answers.
    normalize
        Divide the gate gradient by its L2 norm within each layer, as for pruning.
    tolerance
        What the integrated gate gradients may miss of m(1) − m(0), as a share of its mean size over
        prompts.
    exhaustive
        Ablate every head, whatever their number. Without it, in a model of more than 64 heads,
        ablations are missing for heads that no gradient ranks first, but for a random sample, and
        integrated gradients are left out: they take more passes than ablating all heads.
    seed
        Seed of the bootstrap over prompts, of the shuffled answers and of the sample of heads.

    Returns
    -------
    Dataset with ``zero_ablation``, ``mean_ablation``, ``resample_ablation`` and
    ``sink_free_ablation`` (layer, head; the metric lost, positive for a head that helps; one query
    head at a time), with grouped KV heads ``kv_group_ablation`` (layer, kv_head; all query heads of
    a group at once), ``gate_gradient`` (layer, head; from 0), ``first_order`` (layer, head; the
    signed gradient, the linear estimate of ``zero_ablation``), ``integrated_gradient`` (layer,
    head), ``intact`` (the metric of the whole model), ``null_ablation`` (what a head must exceed to
    be called important; no interval), and the Spearman rank correlations of absolute scores
    ``gate_vs_zero``, ``gate_vs_mean``, ``integrated_vs_zero``, ``zero_vs_mean`` and
    ``zero_vs_resample``. All others with 95 % intervals over prompts. ``important_heads`` in the
    attributes names the heads above the null.
    """
    require(capture, KEEP, "importance")
    name = task.metric if metric == "task" else metric
    smooth = differentiable(name)

    encoded = ablation.encode_task(model, task)
    clean = ablation.evaluate(model, encoded, (), name)
    mean, corrupted = ablation.mean_z(capture), ablation.capture_corrupted(model, encoded)
    stand_ins = (mean, ablation.kept_z(corrupted))
    chosen = screen(model, encoded, name, stand_ins, exhaustive=exhaustive, seed=seed)
    scores: dict[str, Array] = {}
    lost, null, groups = _losses(capture, model, encoded, name, clean, seed, stand_ins, chosen)
    slope = head_gradients.gate_gradient(model, encoded, smooth)
    if chosen.complete:
        integral, whole = head_gradients.integrated_gates(model, encoded, smooth, tolerance)
        scores["integral"] = integral
    gate = np.abs(slope)
    scores |= {**lost, "gate": gate}

    units, count = UNITS[name], len(clean)
    convention = f"{name.replace('_', ' ')} on {count} prompts of {task.name}"
    grid, causal = ("layer", "head"), {"evidence": "causal"}
    results = Results(capture, seed=seed, source=SOURCE)
    for key, (state, meaning) in ABLATIONS.items():
        results.add_mean(
            key, grid, lost[key], f"Lost on {task.name} without the head ({state})", units,
            "diverging", **causal,
            convention=f"{meaning}, one query head at a time, {chosen.convention}; {convention}",
        )  # fmt: skip
    coords: dict[str, Any] = {}
    if groups is not None:
        coords["kv_head"] = np.arange(model.kv_heads)
        results.add_mean(
            "kv_group_ablation", ("layer", "kv_head"), groups,
            f"Lost on {task.name} without all query heads of a KV group", units, "diverging",
            **causal,
            convention=f"mean ablation of {model.heads // model.kv_heads} query heads at once; "
            f"{convention}",
        )  # fmt: skip
    results.add_means(
        ("gate_gradient", grid, _normalized(gate) if normalize else gate,
         f"Gate-gradient importance on {task.name}",
         ("share of the layer's norm" if normalize else UNITS[smooth], "sequential", 0),
         f"E|∂m/∂ξ| at ξ = 1, absolute value per prompt; m: {smooth}"),
        ("first_order", grid, slope, f"First-order estimate on {task.name}",
         (UNITS[smooth], "diverging"), f"E ∂m/∂ξ at ξ = 1; m: {smooth}"),
        ("intact", (), clean, f"Intact {name.replace('_', ' ')}", (units, "diverging"),
         f"the whole model; {convention}"),
    )  # fmt: skip
    attrs: dict[str, Any] = {}
    if chosen.complete:
        gap = float(np.abs(np.nansum(integral, axis=(1, 2)) - whole).max())
        attrs["completeness_gap"] = gap
        results.add_mean(
            "integrated_gradient", grid, integral, f"Integrated gate gradient on {task.name}",
            UNITS[smooth], "diverging", source=INTEGRAL,
            convention="∫ ∂m/∂ξ dξ with all gates from 0 to 1, adaptive Gauss–Legendre; over heads "
            f"it sums to m(1) − m(0) of every prompt within {gap:.2g}; m: {smooth}",
        )  # fmt: skip
    least = threshold(null, seed)
    results.add(
        "null_ablation", (), least, "What a head must lose to be called important", units,
        "sequential", 0,
        convention="95th percentile over resamples of the largest head's mean ablation when every "
        f"prompt is asked for the answers of another; {convention}",
    )  # fmt: skip
    for key, title, first, second in AGREEMENTS:
        if not {first, second} <= scores.keys():
            continue
        results.add_interval(
            key, (), agreement(scores[first], scores[second], seed), title, "Spearman ρ",
            "diverging", -1, 1, convention=OVER_HEADS,
        )  # fmt: skip
    lower = results["mean_ablation_lower"].values
    heads = important(lower, least)
    return results.dataset(
        coords,
        _verdict(results, heads, count),
        chosen.missed(lower > least),
        convention=convention,
        top_heads=[label(head) for head in top(results["zero_ablation"].values, 5)],
        important_heads=heads,
        **attrs,
    )


def _losses(
    capture: xr.Dataset,
    model: Model,
    task: EncodedTask,
    name: str,
    clean: Array,
    seed: int,
    stand_ins: tuple[Tensor, Tensor],
    chosen: Screen,
) -> tuple[dict[str, Array], Array, Array | None]:
    """Return what each ablation loses, the mean ablation under shuffled answers, and KV groups."""
    mean, corrupted = stand_ins
    # What stands in for the heads, and from which position on.
    ablations: dict[str, tuple[Tensor | None, int]] = {
        "zero_ablation": (None, 0),
        "mean_ablation": (mean, 0),
        "resample_ablation": (corrupted, 0),
        "sink_free_ablation": (ablation.mean_z(capture, first=1), 1),
    }
    other = replace(task, questions=shuffled(task.questions, seed))
    # One pass answers the questions of the task and the shuffled ones.
    both = [AnswerMetric(name, encoded.questions) for encoded in (task, other)]
    grouped = model.kv_heads < model.heads
    lost, intact = {}, clean[:, None, None]
    for key, (values, first) in ablations.items():
        measures = both if key == "mean_ablation" else both[:1]
        scores = ablation.ablate_heads(
            model, task, measures, values, first=first, heads=chosen.heads
        )
        lost[key] = intact - scores[0]
        if key == "mean_ablation":
            unrelated = ablation.evaluate(model, other, (), name)
            null = unrelated[:, None, None] - scores[1]
    if not grouped:
        return lost, null, None
    groups = ablation.ablate_heads(model, task, both[:1], mean, heads=chosen.heads, grouped=True)
    return lost, null, intact - groups[0]


def _normalized(gate: Array) -> Array:
    norm = np.linalg.norm(gate.mean(0), axis=-1)
    return np.asarray(gate / np.where(norm > 0, norm, 1.0)[None, :, None])


def _verdict(results: Results, heads: list[str], count: int) -> Verdict:
    rho, lower = (float(results[f"gate_vs_zero{end}"].values) for end in ("", "_lower"))
    pair = most_different(results["gate_gradient"].values, results["zero_ablation"].values)
    if lower > 0:
        ranking = Verdict(
            "supported",
            f"The gate gradient ranks the heads like zero ablation does (Spearman ρ "
            f"{amount(rho)}); they part most at {', '.join(pair)}, by gradient and by ablation.",
        )
    elif count == 1:
        ranking = Verdict(
            "too_few",
            "One prompt has no interval for the rank correlation of gate gradient and zero "
            f"ablation (Spearman ρ {amount(rho)}).",
        )
    else:
        ranking = Verdict(
            "disagreement",
            f"The gate gradient does not rank the heads like zero ablation (Spearman ρ "
            f"{amount(rho)}); trust the ablations.",
        )
    if count < LEAST_PROMPTS:
        text = f"Too few prompts ({count} of {LEAST_PROMPTS}) to call a head important."
        return ranking & Verdict("too_few", text)
    listed = f": {first_few(heads)}" if heads else ""
    text = f"Heads whose mean ablation lies above the null: {len(heads)}{listed}."
    return ranking & Verdict("supported" if heads else "not_supported", text)

"""Head importance: what a task loses when one head is taken out.

Every head in turn is set to zero, to its mean output, and to its output on the corrupted prompt
(resampled); the drop of the task's metric is the causal importance. The three differ: zero takes
away everything a head writes, the mean leaves what it always writes, and resampling takes away only
what tells the clean prompt from the corrupted one. Two variants of the mean: leaving the first
token alone, where many models keep a sink that all later heads rest on, and taking out all query
heads of a KV group at once. Beside them stand two gradients of gates ξ_h that multiply the heads'
outputs: the gate gradient ``I_h = E_x |∂m/∂ξ_h|`` at ξ = 1, one backward pass in place of one
forward pass a head, absolute value per prompt, before the mean; and its integral from no heads
(ξ = 0) to all (ξ = 1), which sums over heads to the metric that all heads bring.

A head is called important only where the interval of its mean ablation lies above what the largest
head reaches when every prompt is asked for the answer of another one.

Sources: Michel et al., Are Sixteen Heads Really Better than One? (1905.10650); Sundararajan et al.,
Axiomatic Attribution for Deep Networks (1703.01365).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.causal_check import Progress
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import (
    averaged,
    dataset,
    interval,
    label,
    require,
    top,
    variable,
)
from headscope.analyses._stats.rank_correlation import agreement, parting
from headscope.analyses.head_importance._nulls import important, shuffled, threshold

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

NEEDS = ()
KEEP = ("z",)
TASK = "ioi"
PROMPTS = 32

METRICS = ("task", "logit_difference", "probability_difference", "log_probability", "accuracy")
UNITS = {
    "logit_difference": "logits",
    "probability_difference": "probability",
    "log_probability": "nats",
    "accuracy": "share of answers",
}
SOURCE = "Michel et al. 1905.10650"
INTEGRAL = "Michel et al. 1905.10650; Sundararajan et al. 1703.01365"
Array = NDArray[np.float64]


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    metric: str = "task",
    normalize: bool = False,
    tolerance: float = 0.05,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Take out every head in turn, and hold gradients of its gate against what that does.

    Parameters
    ----------
    capture
        Capture of the task with the kept ``z``: the mean ablation puts each head's mean output,
        over all positions of the clean prompts, in its place.
    model
        Model that was captured.
    task
        Task whose metric is followed.
    metric
        ``task`` (the task's own), ``logit_difference``, ``probability_difference``,
        ``log_probability`` or ``accuracy``. Accuracy has no gradient; the gates then follow the
        log-probability of the answers.
    normalize
        Divide the gate gradient by its L2 norm within each layer, as for pruning.
    tolerance
        What the integrated gate gradients may miss of m(1) − m(0), as a share of its mean size over
        prompts.
    seed
        Seed of the bootstrap over prompts and of the shuffled answers.
    progress
        Called with (done, total) ablated prompts.

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

    Raises
    ------
    HeadscopeError
        When the capture lacks ``z`` or the metric is unknown.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> result = execute("importance", model, n=2, options={})
    >>> result["zero_ablation"].dims
    ('layer', 'head')
    """
    from headscope.analyses._interventions import ablation, head_gradients

    options.one_of("metric", metric, METRICS)
    options.between("tolerance", tolerance, 1e-4, 1)
    require(capture, KEEP, "importance")
    name = task.metric if metric == "task" else metric
    smooth = "log_probability" if name == "accuracy" else name

    intact = ablation.intact(model, task, name)
    lost, null, groups = _losses(capture, model, task, name, intact, seed, progress)
    slope = head_gradients.gate_gradient(model, task, smooth)
    integral, whole = head_gradients.integrated_gates(model, task, smooth, tolerance)
    gap = float(np.abs(np.nansum(integral, axis=(1, 2)) - whole).max())
    gate = np.abs(slope)

    units, count = UNITS[name], len(intact)
    what = f"{name.replace('_', ' ')} on {count} prompts of {task.name}"
    grid, title = ("layer", "head"), f"Lost on {task.name} without the head"
    one = "one query head at a time"
    variables: dict[str, xr.Variable] = {}
    for key, end, said in (
        ("zero_ablation", "set to zero", f"intact − ablated, {one}"),
        ("mean_ablation", "set to its mean",
         f"intact − ablated, mean of z over positions and clean prompts, {one}"),
        ("resample_ablation", "its output on the corrupted prompt",
         f"intact − patched with z of the corrupted prompt, all positions, {one}"),
        ("sink_free_ablation", "its mean, but at the first token",
         f"mean ablation at every position but the first, where a sink stands, {one}"),
    ):  # fmt: skip
        variables |= averaged(
            key, grid, lost[key], f"{title} ({end})", units, "diverging", seed=seed,
            convention=f"{said}; {what}", source=SOURCE, evidence="causal",
        )  # fmt: skip
    coords: dict[str, Any] = {}
    if groups is not None:
        coords["kv_head"] = np.arange(model.kv_heads)
        variables |= averaged(
            "kv_group_ablation", ("layer", "kv_head"), groups,
            f"Lost on {task.name} without all query heads of a KV group", units, "diverging",
            seed=seed, source=SOURCE, evidence="causal",
            convention=f"mean ablation of {model.heads // model.kv_heads} query heads at once; "
            f"{what}",
        )  # fmt: skip
    variables |= {
        **averaged(
            "gate_gradient", grid, _normalized(gate) if normalize else gate,
            f"Gate-gradient importance on {task.name}",
            "share of the layer's norm" if normalize else UNITS[smooth],
            "sequential", 0, seed=seed, source=SOURCE,
            convention=f"E|∂m/∂ξ| at ξ = 1, absolute value per prompt; m: {smooth}",
        ),
        **averaged(
            "first_order", grid, slope, f"First-order estimate on {task.name}", UNITS[smooth],
            "diverging", seed=seed, source=SOURCE, convention=f"E ∂m/∂ξ at ξ = 1; m: {smooth}",
        ),
        **averaged(
            "integrated_gradient", grid, integral, f"Integrated gate gradient on {task.name}",
            UNITS[smooth], "diverging", seed=seed, source=INTEGRAL,
            convention="∫ ∂m/∂ξ dξ with all gates from 0 to 1, adaptive Gauss–Legendre; over heads "
            f"it sums to m(1) − m(0) of every prompt within {gap:.2g}; m: {smooth}",
        ),
        **averaged("intact", (), intact, f"Intact {name.replace('_', ' ')}", units, "diverging",
                   seed=seed),
    }  # fmt: skip
    least = threshold(null, seed)
    variables["null_ablation"] = variable(
        (), least, "What a head must lose to be called important", units, "sequential", 0,
        convention="95th percentile over resamples of the largest head's mean ablation when every "
        f"prompt is asked for the answers of another; {what}",
    )  # fmt: skip
    for key, words, first, second in (
        ("gate_vs_zero", "Gate gradient against zero ablation", gate, lost["zero_ablation"]),
        ("gate_vs_mean", "Gate gradient against mean ablation", gate, lost["mean_ablation"]),
        ("integrated_vs_zero", "Integrated gate gradient against zero ablation", integral,
         lost["zero_ablation"]),
        ("zero_vs_mean", "Zero ablation against mean ablation", lost["zero_ablation"],
         lost["mean_ablation"]),
        ("zero_vs_resample", "Zero ablation against resampling", lost["zero_ablation"],
         lost["resample_ablation"]),
    ):  # fmt: skip
        variables |= interval(
            key, (), *agreement(first, second, seed), words, "Spearman ρ", "diverging", -1, 1,
            convention="rank correlation over heads of the absolute means over prompts",
        )  # fmt: skip
    found = important(variables["mean_ablation_lower"].values, least)
    return dataset(
        capture,
        variables,
        coords,
        convention=what,
        top_heads=[label(head) for head in top(variables["zero_ablation"].values, 5)],
        important_heads=found,
        completeness_gap=gap,
        note=_note(variables, found, count),
    )


def _losses(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    name: str,
    intact: Array,
    seed: int,
    progress: Progress | None,
) -> tuple[dict[str, Array], Array, Array | None]:
    """Return what each ablation loses, the mean ablation under shuffled answers, and KV groups."""
    from headscope.analyses._interventions import ablation, head_sweep

    mean = ablation.mean_z(capture)
    asked = ablation.asked_of(model, task)[1]
    other = shuffled(asked, seed)
    grouped = model.kv_heads < model.heads
    parts = iter(_parts(progress, 5 if grouped else 4))
    whole = ablation.leave_out(model, task, (name,), head_sweep.no_head(model), labels=(other,))[0]

    left = ablation.leave_one_out(model, task, name, None, next(parts))
    both = ablation.leave_out(
        model, task, (name, name), head_sweep.every_head(model), mean, next(parts),
        labels=(asked, other),
    )  # fmt: skip
    resampled = ablation.outputs(ablation.corrupted(model, task))
    lost = {
        "zero_ablation": left,
        "mean_ablation": ablation.spread(model, both[0]),
        "resample_ablation": ablation.leave_one_out(model, task, name, resampled, next(parts)),
        "sink_free_ablation": ablation.leave_one_out(
            model, task, name, ablation.mean_z(capture, first=1), next(parts), first=1
        ),
    }
    lost = {key: intact[:, None, None] - each for key, each in lost.items()}
    null = ablation.spread(model, whole - both[1])
    if not grouped:
        return lost, null, None
    sets = head_sweep.every_group(model)
    kept = ablation.leave_out(model, task, (name,), sets, mean, next(parts))[0]
    return lost, null, intact[:, None, None] - ablation.spread(model, kept)


def _parts(progress: Progress | None, count: int) -> list[Progress | None]:
    """Split one progress over the ablations."""
    if progress is None:
        return [None] * count

    def part(before: int) -> Progress:
        return lambda done, total: progress(before * total + done, count * total)

    return [part(before) for before in range(count)]


def _normalized(gate: Array) -> Array:
    norm = np.linalg.norm(gate.mean(0), axis=-1)
    return np.asarray(gate / np.where(norm > 0, norm, 1.0)[None, :, None])


def _note(variables: dict[str, xr.Variable], found: list[str], count: int) -> str:
    rho = float(variables["gate_vs_zero"].values)
    lower = float(variables["gate_vs_zero_lower"].values)
    pair = parting(variables["gate_gradient"].values, variables["zero_ablation"].values)
    if lower > 0:
        said = (
            f"The gate gradient ranks the heads like zero ablation does (Spearman ρ {rho:.2f}); "
            f"they part most at {', '.join(pair)}, by gradient and by ablation."
        )
    else:
        said = (
            f"DISAGREEMENT: the gate gradient does not rank the heads like zero ablation "
            f"(Spearman ρ {rho:.2f}); trust the ablations."
        )
    if count < 2:
        return f"{said} One prompt has no interval, so no head is called important."
    listed = f": {', '.join(found[:8])}" if found else ""
    return f"{said} Heads whose mean ablation lies above the null: {len(found)}{listed}."

"""Head importance: what a task loses when one head is taken out.

Every head in turn is set to zero, to its mean output, and to its output on the corrupted prompt
(resampled); the drop of the task's metric is the causal importance. The three differ: zero takes
away everything a head writes, the mean leaves what it always writes, and resampling takes away only
what tells the clean prompt from the corrupted one. Beside them stands the gate gradient,
``I_h = E_x |∂m/∂ξ_h|`` at ξ = 1, where ξ_h multiplies the head's output: one backward pass in place
of one forward pass a head. The absolute value is taken per prompt, before the mean.

Sources: Michel et al., Are Sixteen Heads Really Better than One? (1905.10650).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses.shared import check
from headscope.analyses.shared.interval import draws, percentiles
from headscope.analyses.shared.removal import Progress
from headscope.analyses.shared.result import averaged, dataset, interval, label, require, top

if TYPE_CHECKING:
    from headscope.probes.model import Model
    from headscope.probes.task import Task

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
RESAMPLES = 300


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    metric: str = "task",
    normalize: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Take out every head in turn, and hold the gate gradient against what that does.

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
        ``log_probability`` or ``accuracy``. Accuracy has no gradient; the gate gradient then
        follows the log-probability of the answers.
    normalize
        Divide the gate gradient by its L2 norm within each layer, as for pruning.
    seed
        Seed of the bootstrap over prompts.
    progress
        Called with (done, total) ablated prompts.

    Returns
    -------
    Dataset with ``zero_ablation``, ``mean_ablation`` and ``resample_ablation`` (layer, head; the
    metric lost, positive for a head that helps), ``gate_gradient`` (layer, head; from 0),
    ``first_order`` (layer, head; the signed gradient, the linear estimate of ``zero_ablation``),
    ``intact`` (the metric of the whole model), and the Spearman rank correlations of absolute
    scores ``gate_vs_zero``, ``gate_vs_mean``, ``zero_vs_mean`` and ``zero_vs_resample``. All with
    95 % intervals over prompts.

    Raises
    ------
    Refused
        When the capture lacks ``z`` or the metric is unknown.

    Examples
    --------
    >>> from headscope.analyses.shared.runner import execute
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> result = execute("importance", model, n=2, options={})
    >>> result["zero_ablation"].dims
    ('layer', 'head')
    """
    from headscope.analyses.shared import gating

    check.one_of("metric", metric, METRICS)
    require(capture, KEEP, "importance")
    name = task.metric if metric == "task" else metric
    smooth = "log_probability" if name == "accuracy" else name

    intact = gating.intact(model, task, name)
    others = (
        None,
        gating.mean_z(capture),
        gating.outputs(gating.corrupted(model, task)),
    )
    zero, mean, resample = (
        intact[:, None, None] - gating.leave_one_out(model, task, name, values, step)
        for values, step in zip(others, _parts(progress, len(others)), strict=True)
    )
    slope = gating.gate_gradient(model, task, smooth)
    gate = np.abs(slope)

    units, count = UNITS[name], len(intact)
    what = f"{name.replace('_', ' ')} on {count} prompts of {task.name}"
    grid, lost = ("layer", "head"), f"Lost on {task.name} without the head"
    variables = {
        **averaged(
            "zero_ablation", grid, zero, f"{lost} (set to zero)", units, "diverging",
            seed=seed, convention=f"intact − ablated; {what}", source=SOURCE, evidence="causal",
        ),
        **averaged(
            "mean_ablation", grid, mean, f"{lost} (set to its mean)", units,
            "diverging", seed=seed, source=SOURCE, evidence="causal",
            convention=f"intact − ablated, mean of z over positions and clean prompts; {what}",
        ),
        **averaged(
            "resample_ablation", grid, resample,
            f"{lost} (its output on the corrupted prompt)", units, "diverging",
            seed=seed, source=SOURCE, evidence="causal",
            convention=f"intact − patched with z of the corrupted prompt, all positions; {what}",
        ),
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
        **averaged("intact", (), intact, f"Intact {name.replace('_', ' ')}", units, "diverging",
                   seed=seed),
    }  # fmt: skip
    pairs = {
        "gate_vs_zero": ("Gate gradient against zero ablation", gate, zero),
        "gate_vs_mean": ("Gate gradient against mean ablation", gate, mean),
        "zero_vs_mean": ("Zero ablation against mean ablation", zero, mean),
        "zero_vs_resample": ("Zero ablation against resampling", zero, resample),
    }
    for key, (title, first, second) in pairs.items():
        variables |= interval(
            key, (), *_agreement(first, second, seed), title, "Spearman ρ", "diverging", -1, 1,
            convention="rank correlation over heads of the absolute means over prompts",
        )  # fmt: skip
    best = top(variables["zero_ablation"].values, 5)
    rho = float(variables["gate_vs_zero"].values)
    return dataset(
        capture,
        variables,
        convention=what,
        top_heads=[label(head) for head in best],
        note=_note(rho, float(variables["gate_vs_zero_lower"].values)),
    )


def _parts(progress: Progress | None, count: int) -> list[Progress | None]:
    """Split one progress over the ablations."""
    if progress is None:
        return [None] * count

    def part(before: int) -> Progress:
        return lambda done, total: progress(before * total + done, count * total)

    return [part(before) for before in range(count)]


def _normalized(gate: NDArray[np.float64]) -> NDArray[np.float64]:
    norm = np.linalg.norm(gate.mean(0), axis=-1)
    return np.asarray(gate / np.where(norm > 0, norm, 1.0)[None, :, None])


def _agreement(
    first: NDArray[np.float64], second: NDArray[np.float64], seed: int
) -> tuple[float, float, float]:
    """Spearman's ρ over heads of |mean over prompts|, with its bootstrap interval over prompts."""
    from headscope.analyses.rollout import correlate

    # Heads of layers without an attention map have no number on either side.
    known = ~np.isnan(first).any(0)
    one, two = first[:, known], second[:, known]
    rho = correlate(np.abs(one.mean(0)), np.abs(two.mean(0)))
    if len(one) < 2:
        return rho, float("nan"), float("nan")
    weights = draws(len(one), RESAMPLES, seed) / len(one)
    resampled = [
        correlate(a, b) for a, b in zip(np.abs(weights @ one), np.abs(weights @ two), strict=True)
    ]
    lower, upper = percentiles(np.asarray(resampled)[:, None], 0.025)
    return rho, float(lower[0]), float(upper[0])


def _note(rho: float, lower: float) -> str:
    if lower > 0:
        return f"The gate gradient ranks the heads like zero ablation does (Spearman ρ {rho:.2f})."
    return (
        f"DISAGREEMENT: the gate gradient does not rank the heads like zero ablation "
        f"(Spearman ρ {rho:.2f}); trust the ablations."
    )

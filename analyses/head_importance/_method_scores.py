"""Every method that ranks heads, over the same prompts of a task and with the same edits."""

import numpy as np
import xarray as xr

from headscope.analyses._interventions import ablation, head_gradients
from headscope.analyses._interventions.metrics import differentiable
from headscope.analyses._interventions.screening import FIRST, Screen, screen
from headscope.analyses._measurements import direct_logit_attribution
from headscope.analyses._runtime.results import top
from headscope.analyses._stats.bootstrap import Array
from headscope.kernels.errors import HeadscopeError
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tokens import EncodedTask

# What integrals may miss: ranks of heads need no more.
ROUGH = 0.25


def patch_both_ways(
    model: Model,
    clean: EncodedTask,
    capture: xr.Dataset,
    metric: str,
    *,
    exhaustive: bool = False,
    seed: int = 0,
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array], Screen]:
    """Patch heads between clean and corrupted prompts, and estimate that linearly for all.

    Returned are the metric by side (prompt,), by direction the effects and their estimates
    (prompt, layer, head), positive where they help the clean answer, and which heads were patched.
    Gradients of accuracy follow the log-probability.
    """
    corrupted, smooth = clean.corrupted(), differentiable(metric)
    clean_z = ablation.kept_z(capture)
    corrupted_z = ablation.kept_z(ablation.capture_corrupted(model, clean))
    levels = {
        "clean": ablation.evaluate(model, clean, (), metric),
        "corrupted": ablation.evaluate(model, corrupted, (), metric),
    }
    estimates = {
        "noising": -head_gradients.patch_gradient(model, clean, smooth, corrupted_z),
        "denoising": head_gradients.patch_gradient(model, corrupted, smooth, clean_z),
    }
    also = [
        head for estimate in estimates.values() for head in top(np.abs(estimate.mean(0)), FIRST)
    ]
    means = (ablation.mean_z(capture),)
    chosen = screen(model, clean, metric, means, also=also, exhaustive=exhaustive, seed=seed)
    patched = ablation.ablate_each_head(model, clean, metric, corrupted_z, heads=chosen.heads)
    restored = ablation.ablate_each_head(model, corrupted, metric, clean_z, heads=chosen.heads)
    effects = {
        "noising": levels["clean"][:, None, None] - patched,
        "denoising": restored - levels["corrupted"][:, None, None],
    }
    return levels, effects, estimates, chosen


def scores(
    model: Model,
    task: Task,
    capture: xr.Dataset,
    metric: str,
    *,
    exhaustive: bool = False,
    seed: int = 0,
) -> tuple[dict[str, Array], str, Screen]:
    """Return the scores of every method (prompt, layer, head), positive for heads that help.

    Also why direct logits are left out, where the model has none, and which heads were ablated.
    """
    smooth = differentiable(metric)
    clean = ablation.encode_task(model, task)
    levels, effects, estimates, chosen = patch_both_ways(
        model, clean, capture, metric, exhaustive=exhaustive, seed=seed
    )
    methods = {}
    for name, values in (("zero", None), ("mean", ablation.mean_z(capture))):
        ablated = ablation.ablate_each_head(model, clean, metric, values, heads=chosen.heads)
        methods[f"{name} ablation"] = levels["clean"][:, None, None] - ablated
    methods |= effects
    methods["gate gradient"] = np.abs(head_gradients.gate_gradient(model, clean, smooth))
    if chosen.complete:
        integral, _ = head_gradients.integrated_gates(model, clean, smooth, ROUGH)
        methods["integrated gradient"] = integral
    methods |= {f"{direction} attribution": values for direction, values in estimates.items()}
    why = ""
    try:
        methods["direct logits"] = direct_logit_attribution.attribute(model, clean).heads
    except HeadscopeError as refusal:
        why = str(refusal)
    return methods, why, chosen


def losses(
    model: Model, task: Task, metric: str, *, exhaustive: bool = False, seed: int = 0
) -> tuple[Array, Array]:
    """Return the gate gradients and what zero ablation loses (prompt, layer, head)."""
    encoded = ablation.encode_task(model, task)
    chosen = screen(model, encoded, metric, exhaustive=exhaustive, seed=seed)
    clean = ablation.evaluate(model, encoded, (), metric)[:, None, None]
    zero = clean - ablation.ablate_each_head(model, encoded, metric, heads=chosen.heads)
    gradient = head_gradients.gate_gradient(model, encoded, differentiable(metric))
    return np.abs(gradient), zero

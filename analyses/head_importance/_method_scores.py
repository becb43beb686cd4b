"""Every method that ranks heads, over the same prompts of a task and with the same edits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions import ablation, head_gradients, head_sweep
from headscope.analyses._measurements import direct_logit_attribution
from headscope.kernels.errors import HeadscopeError

if TYPE_CHECKING:
    from torch import Tensor

    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

Array = NDArray[np.float64]
# What integrals may miss: ranks of heads need no more.
ROUGH = 0.25


def scores(
    model: Model, task: Task, capture: xr.Dataset, metric: str
) -> tuple[dict[str, Array], str]:
    """Return the scores of every method (prompt, layer, head), positive for heads that help.

    Parameters
    ----------
    model, task
        What is measured.
    capture
        Capture of the task with the kept ``z``.
    metric
        Metric of the ablations; gradients of accuracy follow the log-probability.

    Returns
    -------
    Scores by the name of the method, and why direct logits are left out where the model has none.
    """
    smooth = "log_probability" if metric == "accuracy" else metric
    clean, corrupted = ablation.outputs(capture), ablation.outputs(ablation.corrupted(model, task))
    intact, floor = (
        ablation.leave_out(model, task, (metric,), head_sweep.no_head(model), on=on)[0][:, :, None]
        for on in ("clean", "corrupted")
    )

    def left(values: Tensor | None = None, on: str = "clean") -> Array:
        return ablation.leave_one_out(model, task, metric, values, on=on)

    found = {
        "zero ablation": intact - left(),
        "mean ablation": intact - left(ablation.mean_z(capture)),
        "noising": intact - left(corrupted),
        "denoising": left(clean, "corrupted") - floor,
        "gate gradient": np.abs(head_gradients.gate_gradient(model, task, smooth)),
        "integrated gradient": head_gradients.integrated_gates(model, task, smooth, ROUGH)[0],
        "noising attribution": -head_gradients.patch_slope(model, task, smooth, corrupted, "clean"),
        "denoising attribution": head_gradients.patch_slope(
            model, task, smooth, clean, "corrupted"
        ),
    }
    why = ""
    try:
        found["direct logits"] = direct_logit_attribution.attribute(model, task).heads
    except HeadscopeError as refusal:
        why = str(refusal)
    return found, why


def losses(model: Model, task: Task, metric: str) -> tuple[Array, Array]:
    """Return the gate gradients and what zero ablation loses (prompt, layer, head)."""
    smooth = "log_probability" if metric == "accuracy" else metric
    intact = ablation.intact(model, task, metric)[:, None, None]
    zero = intact - ablation.leave_one_out(model, task, metric)
    return np.abs(head_gradients.gate_gradient(model, task, smooth)), zero

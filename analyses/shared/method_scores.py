"""Every method that ranks heads, over the same prompts of a task and with the same edits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses.shared import direct, gating, slopes, sweeping
from headscope.kernels.errors import HeadscopeError

if TYPE_CHECKING:
    from torch import Tensor

    from headscope.probes.model import Model
    from headscope.probes.task import Task

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
    clean, corrupted = gating.outputs(capture), gating.outputs(gating.corrupted(model, task))
    intact, floor = (
        gating.leave_out(model, task, (metric,), sweeping.no_head(model), on=on)[0][:, :, None]
        for on in ("clean", "corrupted")
    )

    def left(values: Tensor | None = None, on: str = "clean") -> Array:
        return gating.leave_one_out(model, task, metric, values, on=on)

    found = {
        "zero ablation": intact - left(),
        "mean ablation": intact - left(gating.mean_z(capture)),
        "noising": intact - left(corrupted),
        "denoising": left(clean, "corrupted") - floor,
        "gate gradient": np.abs(slopes.gate_gradient(model, task, smooth)),
        "integrated gradient": slopes.integrated_gates(model, task, smooth, ROUGH)[0],
        "noising attribution": -slopes.patch_slope(model, task, smooth, corrupted, "clean"),
        "denoising attribution": slopes.patch_slope(model, task, smooth, clean, "corrupted"),
    }
    why = ""
    try:
        found["direct logits"] = direct.attribute(model, task).heads
    except HeadscopeError as refusal:
        why = str(refusal)
    return found, why


def losses(model: Model, task: Task, metric: str) -> tuple[Array, Array]:
    """Return the gate gradients and what zero ablation loses (prompt, layer, head)."""
    smooth = "log_probability" if metric == "accuracy" else metric
    intact = gating.intact(model, task, metric)[:, None, None]
    zero = intact - gating.leave_one_out(model, task, metric)
    return np.abs(slopes.gate_gradient(model, task, smooth)), zero

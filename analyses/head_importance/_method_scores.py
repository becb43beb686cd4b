"""Every method that ranks heads, over the same prompts of a task and with the same edits."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from headscope.analyses._interventions import ablation, head_gradients
from headscope.analyses._interventions.metrics import differentiable
from headscope.analyses._measurements import direct_logit_attribution
from headscope.analyses._runtime.progress import steps
from headscope.kernels.errors import HeadscopeError
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task

Array = NDArray[np.float64]
# What integrals may miss: ranks of heads need no more.
ROUGH = 0.25


def scores(
    model: Model, task: Task, capture: xr.Dataset, metric: str
) -> tuple[dict[str, Array], str]:
    """Return the scores of every method (prompt, layer, head), positive for heads that help.

    Also why direct logits are left out, where the model has none. Gradients of accuracy follow the
    log-probability.
    """
    smooth = differentiable(metric)
    clean = ablation.encode_task(model, task)
    corrupted = clean.corrupted()
    clean_z = ablation.kept_z(capture)
    corrupted_z = ablation.kept_z(ablation.capture_corrupted(model, clean))
    score, floor = (
        ablation.evaluate(model, encoded, (), metric)[:, None, None]
        for encoded in (clean, corrupted)
    )

    ablations: dict[str, Tensor | None] = {
        "zero ablation": None, "mean ablation": ablation.mean_z(capture), "noising": corrupted_z,
    }  # fmt: skip
    methods = {}
    with steps(4) as step:
        for name, values in ablations.items():
            methods[name] = score - ablation.ablate_each_head(model, clean, metric, values)
            step()
        restored = ablation.ablate_each_head(model, corrupted, metric, clean_z)
        methods["denoising"] = restored - floor
        step()
    methods |= {
        "gate gradient": np.abs(head_gradients.gate_gradient(model, clean, smooth)),
        "integrated gradient": head_gradients.integrated_gates(model, clean, smooth, ROUGH)[0],
        "noising attribution": -head_gradients.patch_gradient(model, clean, smooth, corrupted_z),
        "denoising attribution": head_gradients.patch_gradient(model, corrupted, smooth, clean_z),
    }
    why = ""
    try:
        methods["direct logits"] = direct_logit_attribution.attribute(model, clean).heads
    except HeadscopeError as refusal:
        why = str(refusal)
    return methods, why


def losses(model: Model, task: Task, metric: str) -> tuple[Array, Array]:
    """Return the gate gradients and what zero ablation loses (prompt, layer, head)."""
    encoded = ablation.encode_task(model, task)
    clean = ablation.evaluate(model, encoded, (), metric)[:, None, None]
    zero = clean - ablation.ablate_each_head(model, encoded, metric)
    gradient = head_gradients.gate_gradient(model, encoded, differentiable(metric))
    return np.abs(gradient), zero

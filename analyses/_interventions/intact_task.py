"""What the intact model makes of a task, stated with every result that stands on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headscope.analyses._interventions.ablation import evaluate
from headscope.analyses._interventions.metrics import UNITS
from headscope.analyses._stats.bootstrap import bootstrap
from headscope.kernels.errors import HeadscopeError
from headscope.kernels.formatting import amount

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task


def measure(model: Model, task: Task) -> tuple[str, bool]:
    """Describe the score of a model on a task, and return whether it is too low to conclude from.

    A difference is too low where its interval reaches 0; of accuracy the causal checks judge, which
    may be of other prompts beside. Empty where the model, or the task, has no answers to score.
    """
    try:
        scores = evaluate(model, task)
    except HeadscopeError:  # the analysis says so itself, where it needs them
        return "", False
    mean, lower, upper = (float(end) for end in bootstrap(scores))
    interval = f" ({amount(lower)} to {amount(upper)})" if len(scores) > 1 else ""
    low = task.metric != "accuracy" and not (lower if interval else mean) > 0
    name = task.metric.replace("_", " ")
    unit = "" if task.metric == "accuracy" else f" {UNITS[task.metric]}"
    return f"Intact {name} on {task.name}: {amount(mean)}{interval}{unit}", low

"""Injection: a head is given another pattern, and the task says whether its own was needed.

In every head in turn the attention weights are replaced by a map known beforehand (each query on
the token before, on the first token, on all alike) or edited (the last keys only, the first key
hidden), while values and output projection stay the head's own. A head whose task survives the
previous-token map does with its attention what that map does, whatever its weights look like; one
that survives the uniform map does not use its attention at all. Beside them stands the head without
any output. The weights of all heads, put back as a fixed map, change nothing, which is checked.

Sources: Xiao et al., Human Guided Exploitation of Interpretable Attention Patterns; TAB
(Transformer Attention Bottlenecks); DAM (dynamic attention masks).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.metrics import METRICS, UNITS, AnswerMetric
from headscope.analyses._runtime import options
from headscope.analyses._runtime.progress import steps
from headscope.analyses._runtime.results import averaged, dataset, label, require, variable

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task
    from headscope.probes.prompts.tokens import EncodedTask

NEEDS = ()
TASK = "ioi"
PROMPTS = 8

SOURCE = "Xiao et al., Human Guided Exploitation of Interpretable Attention Patterns"
MASKS = "DAM; TAB"
# Share of what the head's removal costs that a map may cost, and still stand in for the head.
STANDING_IN = 0.1


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    metric: str = "task",
    recent: int = 4,
    seed: int = 0,
) -> xr.Dataset:
    """Put fixed patterns into every head in turn, and measure what the task loses.

    Parameters
    ----------
    capture
        Capture of the task; only its provenance is read.
    model
        Model that was captured; it predicts the next token.
    task
        Task whose metric is followed.
    metric
        ``task`` (the task's own), ``logit_difference``, ``probability_difference``,
        ``log_probability`` or ``accuracy``.
    recent
        Keys that the window leaves, the query's own included; 1 or more.
    seed
        Seed of the bootstrap over prompts.
    progress
        Called with (done, total) edited heads.

    Returns
    -------
    Dataset with ``previous``, ``first``, ``uniform``, ``window``, ``hidden_first`` and ``removed``
    (layer, head; the metric lost, positive where the head's own pattern is needed, with 95 %
    intervals over prompts), ``own`` (the largest change of the metric of any prompt with every
    head's own weights put back as a fixed map; 0 but for rounding) and ``intact``. Attribute
    ``stand_ins`` names, for each map, the heads that the task needs and that the map stands in for:
    its cost is at most a tenth of the removal's.

    Raises
    ------
    HeadscopeError
        When the metric is unknown, ``recent`` is below 1, or the model predicts no next token.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> result = execute("injection", model, n=1)
    >>> result["previous"].dims, float(result["own"]) < 1e-3
    (('layer', 'head'), True)
    """
    from headscope.analyses._interventions.ablation import encode_task, evaluate

    options.one_of("metric", metric, METRICS)
    options.at_least("recent", recent, 1)
    require(capture, NEEDS, "injection")
    name = task.metric if metric == "task" else metric
    encoded = encode_task(model, task)
    intact = evaluate(model, encoded, (), name)
    lost = {}
    with steps(len(_EDITS)) as step:
        for key in _EDITS:
            lost[key] = intact[:, None, None] - _scores(model, encoded, name, key, recent)
            step()
    what = f"{name.replace('_', ' ')} on {len(intact)} prompts of {task.name}"
    variables: dict[str, xr.Variable] = {}
    for key, (title, how) in _EDITS.items():
        variables |= averaged(
            key, ("layer", "head"), lost[key], f"Lost on {task.name}: {title}", UNITS[name],
            "diverging", seed=seed, evidence="causal",
            source=MASKS if key in ("window", "hidden_first") else SOURCE,
            convention=f"intact − edited, {how.format(recent=recent)}, one head at a time; {what}",
        )  # fmt: skip
    variables["own"] = variable(
        (), _own(model, task, name, intact), "Change with every head's own pattern put back",
        UNITS[name], "sequential", 0, evidence="causal",
        convention=f"largest of any prompt; 0 but for rounding; {what}",
    )  # fmt: skip
    variables |= averaged("intact", (), intact, f"Intact {name.replace('_', ' ')}", UNITS[name],
                          "diverging", seed=seed, convention=what)  # fmt: skip
    standing = _standing(variables)
    return dataset(
        capture, variables, convention=what, stand_ins=standing, note=_note(standing, variables)
    )


_EDITS = {
    "previous": ("every query on the token before", "pattern: the token before, the first itself"),
    "first": ("every query on the first token", "pattern: the first token"),
    "uniform": ("every query on all keys alike", "pattern: all visible keys alike"),
    "window": ("the last keys only", "mask: the last {recent} keys, the query's own included"),
    "hidden_first": (
        "the first key hidden",
        "knock-out of the first key; the first query then sees none and the head writes 0 there",
    ),
    "removed": ("the head set to zero", "output set to zero"),
}


def _scores(
    model: Model, task: EncodedTask, metric: str, key: str, recent: int
) -> NDArray[np.float64]:
    """Return the metric with each head edited in one way (prompt, layer, head)."""
    from headscope.analyses._interventions import ablation
    from headscope.analyses._interventions.batched_edits import RowInject
    from headscope.probes.interventions import Inject, Window

    if key == "removed":
        return ablation.ablate_each_head(model, task, metric)
    if key not in ("uniform", "window"):
        answers = AnswerMetric(metric, task.questions)
        found = ablation.edit_sets(
            model, task, [answers], ablation.every_head(model),
            lambda chosen, prompts: RowInject(chosen, key),
        )  # fmt: skip
        return ablation.fill_layers(model, found[0])
    heads = [(layer, head) for layer in model.geometry.attending for head in range(model.heads)]
    columns = []
    with steps(len(heads)) as step:
        for head in heads:
            window = Window((head,), recent=recent, first=0)
            edit = window if key == "window" else Inject((head,), key)
            columns.append(ablation.evaluate(model, task, (edit,), metric))
            step()
    return ablation.fill_layers(model, np.stack(columns, axis=1))


def _own(model: Model, task: Task, metric: str, intact: NDArray[np.float64]) -> float:
    """Return the largest change of a prompt with every head's own weights put back."""
    from dataclasses import replace

    from headscope.analyses._interventions.ablation import evaluate
    from headscope.analyses.comparison.restoration import own_patterns

    heads = [(layer, head) for layer in model.geometry.attending for head in range(model.heads)]
    changes: list[float] = []
    for prompt, before in zip(task.prompts, intact, strict=True):
        one = replace(task, prompts=(prompt,))
        after = evaluate(model, one, own_patterns(model, one, heads), metric)
        changes.append(abs(float(after[0]) - float(before)))
    return max(changes)


def _standing(variables: dict[str, xr.Variable]) -> dict[str, list[str]]:
    """Name the heads that are needed and that a map stands in for, by map."""
    removed, lower = variables["removed"].values, variables["removed_lower"].values
    with np.errstate(invalid="ignore"):
        # With one prompt there is no interval, so no head is known to be needed.
        needed = (lower > 0) & (removed > STANDING_IN * np.nanmax(removed))
        return {
            key: [
                label((int(layer), int(head)))
                for layer, head in np.argwhere(
                    needed & (variables[key].values <= STANDING_IN * removed)
                )
            ]
            for key in _EDITS
            if key not in ("removed", "hidden_first")
        }


def _note(standing: dict[str, list[str]], variables: dict[str, xr.Variable]) -> str:
    said = "; ".join(f"{key}: {', '.join(heads)}" for key, heads in standing.items() if heads)
    if bool(np.isnan(variables["removed_lower"].values).all()):
        return "INCONCLUSIVE: one prompt has no interval, so no head is known to be needed."
    return f"Heads that the task needs and that an edited pattern stands in for: {said or 'none'}."

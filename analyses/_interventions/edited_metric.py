"""A task's metric under edits, prompt by prompt: of one set of edits, or of many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from headscope.probes.interventions.base import Edit
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

Array = NDArray[np.float64]
Head = tuple[int, int]
Progress = Callable[[int, int], None]
# Tokens in one forward pass, and numbers in its logits.
TOKENS, NUMBERS = 8192, 2**26


def measured(model: Model, task: Task, metric: str, edits: Sequence[Edit] = ()) -> Array:
    """Return a metric of every prompt of a task with the model's heads edited (prompt,).

    Parameters
    ----------
    model, task
        The model, and the task whose questions are scored.
    metric
        A metric of tasks, or ``log_probability``.
    edits
        Edits on the heads, applied in order.
    """
    import torch

    from headscope.analyses._interventions.ablation import measure
    from headscope.probes.attention.forward import logits
    from headscope.probes.prompts.prompt_batch import batches
    from headscope.probes.prompts.reading import read

    model.check_predicts()
    prompts = read(model, task)
    assert prompts.encoded is not None
    result = np.full(len(prompts.ids), np.nan)
    with torch.no_grad():
        for rows in batches(prompts.ids, max(1, min(TOKENS, NUMBERS // model.vocabulary))):
            output = logits(model, torch.tensor([prompts.ids[row] for row in rows]), edits)
            asked = [prompts.encoded.questions[row] for row in rows]
            result[rows] = measure(output, asked, metric).double().cpu().numpy()
    return result


def by_head(
    model: Model,
    task: Task,
    metric: str,
    edit: Callable[[Head], Sequence[Edit]],
    step: Callable[[], None] | None = None,
) -> Array:
    """Return the metric with one head edited at a time (prompt, layer, head).

    NaN in layers without an attention map.
    """
    from headscope.analyses._interventions import ablation

    heads = [(layer, head) for layer in model.geometry.attending for head in range(model.heads)]
    columns = []
    for head in heads:
        columns.append(measured(model, task, metric, edit(head)))
        if step is not None:
            step()
    return ablation.spread(model, np.stack(columns, axis=1))


def _chosen(model: Model, sets: Sequence[Sequence[Head]]) -> Any:
    """Return which heads are in each set (set, layer, head)."""
    import torch

    every = torch.zeros(len(sets), model.layers, model.heads, dtype=torch.bool)
    for at, heads in enumerate(sets):
        for layer, head in heads:
            every[at, layer, head] = True
    return every


def without(
    model: Model,
    task: Task,
    metric: str,
    sets: Sequence[Sequence[Head]],
    values: Any = None,
    step: Callable[[], None] | None = None,
) -> Array:
    """Return the metric with each set of heads taken out (prompt, set).

    Parameters
    ----------
    model, task, metric, sets, step
        As in `swept`.
    values
        Vectors (layer, head, size) that stand in for the outputs; zero without them.
    """
    from headscope.analyses._interventions.ablation import leave_out

    model.check_predicts()
    found = leave_out(model, task, (metric,), _chosen(model, sets), values)[0]
    if step is not None:
        for _ in sets:
            step()
    return np.asarray(found)


def swept(
    model: Model,
    task: Task,
    metric: str,
    sets: Sequence[Sequence[Head]],
    edit: Callable[[Any], Edit],
    step: Callable[[], None] | None = None,
) -> Array:
    """Return the metric with each set of heads edited, many sets in one pass (prompt, set).

    Parameters
    ----------
    model, task, metric
        As in `measured`.
    sets
        Sets of heads; the empty one is the intact model.
    edit
        Makes an edit of the heads that are chosen anew in every row (row, layer, head).
    step
        Called once for each set.
    """
    import torch

    from headscope.analyses._interventions.ablation import measure
    from headscope.probes.attention.forward import logits
    from headscope.probes.prompts.prompt_batch import batches
    from headscope.probes.prompts.reading import read

    model.check_predicts()
    prompts = read(model, task)
    assert prompts.encoded is not None
    every = _chosen(model, sets)
    found = np.full((len(prompts.ids), len(sets)), np.nan)
    room = max(1, min(TOKENS, NUMBERS // model.vocabulary))
    for rows in batches(prompts.ids, room):
        ids = torch.tensor([prompts.ids[row] for row in rows])
        asked = [prompts.encoded.questions[row] for row in rows]
        together = max(1, room // ids.numel())
        for start in range(0, len(sets), together):
            chosen = every[start : start + together].repeat_interleave(len(rows), dim=0)
            times = len(chosen) // len(rows)
            with torch.no_grad():
                output = logits(model, ids.repeat(times, 1), (edit(chosen),))
            scores = measure(output, asked * times, metric).double().cpu().numpy()
            found[rows, start : start + times] = scores.reshape(times, -1).T
    if step is not None:
        for _ in sets:
            step()
    return found


def counter(progress: Progress | None, total: int) -> Callable[[], None]:
    """Return a function that reports one more of ``total`` as done, each time it is called."""
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(min(done, total), total)

    return step

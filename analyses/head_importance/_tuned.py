"""Weights and offsets of heads, learned by gradient descent with the model left as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from headscope.analyses._interventions.ablation import TOKENS, asked_batches, encode_task
from headscope.analyses._interventions.metrics import score
from headscope.kernels.errors import NotApplicable
from headscope.probes.attention.forward import logits
from headscope.probes.interventions import Edit, Gate, Offset

if TYPE_CHECKING:
    import xarray as xr

    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task
    from headscope.probes.prompts.tokens import EncodedTask

Array = NDArray[np.float64]
Head = tuple[int, int]
GOALS = ("wrong", "answers")


def aimed(task: Task, goal: str) -> Task:
    """Return the task with the words that are to be said as its answers.

    Parameters
    ----------
    task
        The task.
    goal
        ``answers`` leaves it; ``wrong`` asks for the wrong answers in place of the right ones.

    Raises
    ------
    NotApplicable
        For ``wrong`` where a question has no wrong answers.
    """
    if goal == "answers":
        return task
    prompts = []
    for prompt in task.prompts:
        if not all(each.wrong for each in prompt.questions):
            raise NotApplicable(
                f"goal: a question of {task.name} has no wrong answers; use goal='answers'"
            )
        swapped = tuple(
            replace(each, answers=each.wrong, wrong=each.answers) for each in prompt.questions
        )
        prompts.append(replace(prompt, questions=swapped))
    return replace(task, prompts=tuple(prompts))


def head_weights(
    model: Model,
    task: Task | EncodedTask,
    *,
    steps: int,
    rate: float,
    penalty: float = 0.0,
    heads: Sequence[Head] | None = None,
    step: Callable[[], None] | None = None,
) -> Array:
    """Learn a factor for the output of every head that makes the answers likely (layer, head).

    Parameters
    ----------
    model, task
        The model, left as it is, and the task whose answers are to be said.
    steps, rate
        Number and size of Adam's steps.
    penalty
        Nats that a mean departure of 1 from the factor 1 costs: heads that do not matter stay.
    heads
        Heads that may learn; all of them without it.
    step
        Called after each step.

    Returns
    -------
    The factors; NaN in layers without an attention map.
    """
    change = torch.zeros(model.layers, model.heads, device=model.device)
    mask = torch.ones_like(change)
    if heads is not None:
        mask = torch.zeros_like(change)
        for layer, head in heads:
            mask[layer, head] = 1.0

    def edits() -> tuple[Edit, ...]:
        return (Gate(1 + mask * change),)

    _descend(model, task, change, edits, steps, rate, penalty, step)
    found = (1 + mask * change.detach()).double().cpu().numpy()
    found[list(model.geometry.without)] = np.nan
    return np.asarray(found)


def offsets(
    model: Model,
    task: Task | EncodedTask,
    heads: Sequence[Head],
    sizes: Float[Tensor, "layer head"],
    *,
    steps: int,
    rate: float,
    step: Callable[[], None] | None = None,
) -> Float[Tensor, "layer head size"]:
    """Learn a vector that is added to the output of each chosen head at every position.

    Parameters
    ----------
    model, task, steps, rate, step
        As in `head_weights`.
    heads
        The heads, as (layer, head) pairs.
    sizes
        Size of a typical output of each head; a step is measured in it.
    """
    change = torch.zeros(model.layers, model.heads, model.geometry.value_size, device=model.device)
    scale = sizes.to(change)[:, :, None]

    def edits() -> tuple[Edit, ...]:
        return (Offset(tuple(heads), change * scale),)

    _descend(model, task, change, edits, steps, rate, 0.0, step)
    return (change.detach() * scale).cpu()


def output_sizes(capture: xr.Dataset) -> Float[Tensor, "layer head"]:
    """Return the root mean square of a coordinate of each head's output; 0 where there is none."""
    z = capture["z"].transpose("layer", "head", ...)
    flat = z.values.reshape(*z.shape[:2], -1).astype(np.float64)
    known = (~np.isnan(flat)).sum(-1)
    square = np.nansum(flat**2, axis=-1) / np.maximum(known, 1)
    return torch.from_numpy(np.sqrt(square).astype(np.float32))


def _descend(
    model: Model,
    task: Task | EncodedTask,
    change: Tensor,
    edits: Callable[[], tuple[Edit, ...]],
    steps: int,
    rate: float,
    penalty: float,
    step: Callable[[], None] | None,
) -> None:
    """Move ``change``, in place, to where the answers are most likely."""
    encoded = encode_task(model, task)
    change.requires_grad_(True)
    optimizer = torch.optim.Adam([change], lr=rate)
    for _ in range(steps):
        slope = torch.zeros_like(change)
        for prompts, ids, positions in asked_batches(model, encoded.ids, encoded.asked, TOKENS):
            questions = [encoded.questions[prompt] for prompt in prompts]
            with torch.enable_grad():
                output = logits(model, ids, edits(), positions)
                scores = score(output, questions, "log_probability", positions.tolist())
                # Gradients of this alone: the weights of the model get none.
                slope += torch.autograd.grad(-scores.sum() / len(encoded), change)[0]
        if penalty:
            slope += penalty * torch.sign(change.detach()) / change.numel()
        change.grad = slope
        optimizer.step()
        if step is not None:
            step()

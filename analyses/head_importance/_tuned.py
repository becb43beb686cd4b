"""Weights and offsets of heads, learned by gradient descent with the model left as it is."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from headscope.analyses._interventions import ablation, head_sets
from headscope.analyses._interventions.metrics import score
from headscope.analyses._stats.bootstrap import Array
from headscope.kernels.errors import NotApplicable
from headscope.probes.attention.forward import logits
from headscope.probes.interventions import Edit, Gate, Offset
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tokens import EncodedTask


def aimed(task: Task, goal: str) -> Task:
    """Return the task with the words that are to become likely as its answers.

    The goal ``answers`` leaves it; ``wrong`` asks for the wrong answers in place of the right ones.
    """
    if goal == "answers":
        return task
    if not all(question.wrong for prompt in task.prompts for question in prompt.questions):
        raise NotApplicable(
            f"goal: a question of {task.name} has no wrong answers; use goal='answers'"
        )
    swapped = [
        [
            replace(question, answers=question.wrong, wrong=question.answers)
            for question in prompt.questions
        ]
        for prompt in task.prompts
    ]
    pairs = zip(task.prompts, swapped, strict=True)
    return replace(
        task,
        prompts=tuple(replace(prompt, questions=tuple(questions)) for prompt, questions in pairs),
    )


def head_weights(
    model: Model,
    task: Task | EncodedTask,
    *,
    steps: int,
    rate: float,
    penalty: float = 0.0,
    heads: Sequence[head_sets.Head] | None = None,
) -> Array:
    """Learn a factor for the output of every head that makes the answers likely (layer, head).

    The model stays as it is; a mean departure of 1 from the factor 1 costs ``penalty`` nats, so
    that heads that do not matter stay. All heads learn unless ``heads`` names some. NaN in layers
    without an attention map.
    """
    change = torch.zeros(model.layers, model.heads, device=model.device)
    mask = torch.ones_like(change)
    if heads is not None:
        mask = head_sets.masks(model, [heads])[0].to(change)

    _descend(model, task, change, lambda: Gate(1 + mask * change), steps, rate, penalty)
    factors = (1 + mask * change.detach()).double().cpu().numpy()
    factors[list(model.geometry.without)] = np.nan
    return np.asarray(factors)


def offsets(
    model: Model,
    task: Task | EncodedTask,
    heads: Sequence[head_sets.Head],
    sizes: Float[Tensor, "layer head"],
    *,
    steps: int,
    rate: float,
) -> Float[Tensor, "layer head size"]:
    """Learn a vector that is added to the output of each chosen head at every position.

    A step is measured in the sizes of the heads' typical outputs.
    """
    change = torch.zeros(model.layers, model.heads, model.geometry.value_size, device=model.device)
    scale = sizes.to(change)[:, :, None]
    _descend(model, task, change, lambda: Offset(tuple(heads), change * scale), steps, rate, 0.0)
    return (change.detach() * scale).cpu()


def vector_weights(
    model: Model,
    task: Task | EncodedTask,
    edit: Callable[[Tensor], Edit],
    *,
    steps: int,
    rate: float,
    penalty: float,
) -> Array:
    """Learn the numbers of an edit, one a head and 0 at first, that make answers likely.

    A mean size of 1 costs ``penalty`` nats. NaN in layers without an attention map.
    """
    change = torch.zeros(model.layers, model.heads, device=model.device)
    _descend(model, task, change, lambda: edit(change), steps, rate, penalty)
    weights = change.detach().double().cpu().numpy()
    weights[list(model.geometry.without)] = np.nan
    return np.asarray(weights)


def output_sizes(capture: xr.Dataset) -> Float[Tensor, "layer head"]:
    """Return the root mean square of a coordinate of each head's output; 0 where there is none."""
    z = capture["z"].transpose("layer", "head", ...)
    flat = z.values.reshape(*z.shape[:2], -1).astype(np.float64)
    present = (~np.isnan(flat)).sum(-1)
    square = np.nansum(flat**2, axis=-1) / np.maximum(present, 1)
    return torch.from_numpy(np.sqrt(square).astype(np.float32))


def _descend(
    model: Model,
    task: Task | EncodedTask,
    change: Tensor,
    edit: Callable[[], Edit],
    steps: int,
    rate: float,
    penalty: float,
) -> None:
    """Move ``change``, in place, to where the answers are most likely."""
    encoded = ablation.encode_task(model, task)
    change.requires_grad_(True)
    optimizer = torch.optim.Adam([change], lr=rate)
    for _ in range(steps):
        slope = torch.zeros_like(change)
        for prompts, ids, positions in ablation.question_batches(
            model, encoded.ids, encoded.question_positions, ablation.TOKENS
        ):
            questions = [encoded.questions[prompt] for prompt in prompts]
            with torch.enable_grad():
                output = logits(model, ids, (edit(),), positions)
                scores = score(output, questions, "log_probability", positions.tolist())
                # Gradients of this alone: the weights of the model get none.
                slope += torch.autograd.grad(-scores.sum() / len(encoded), change)[0]
        if penalty:
            slope += penalty * torch.sign(change.detach()) / change.numel()
        change.grad = slope
        optimizer.step()

"""Gradients of a task's metric in what scales or replaces the output of every head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.analyses._interventions import ablation, effects, head_sets
from headscope.analyses._interventions.ablation import Array, Batch, encode_task
from headscope.analyses._interventions.batched_edits import RowBlend, RowGate
from headscope.analyses._interventions.metrics import AnswerMetric
from headscope.probes.attention.forward import logits

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task
    from headscope.probes.prompts.tokens import EncodedTask

# The way from no heads to all: parts to begin with, how often one is halved, and the least part
# that an error is shared out by.
PARTS, DEPTH, LEAST = 4, 10, 1 / 64


def gate_gradient(model: Model, task: Task | EncodedTask, metric: str) -> Array:
    """Return the gradient of the metric in a gate on every head, at 1 (prompt, layer, head).

    Prompts of a batch have gates of their own, so that one backward pass keeps them apart. NaN in
    layers without an attention map.
    """
    encoded = encode_task(model, task)

    def slopes(rows: list[int]) -> Array:
        return _gradients(model, encoded, metric, rows, [1.0] * len(rows))

    return _shared(model, encoded, metric, None, "gate", slopes)


def integrated_gates(
    model: Model, task: Task | EncodedTask, metric: str, tolerance: float = 0.05
) -> tuple[Array, Array]:
    """Return gate gradients integrated from no heads to all, and what they should sum to.

    ``∫₀¹ ∂m/∂ξ_h dξ`` with all gates at ξ. Over all heads the integrals sum to m(1) − m(0), the
    fundamental theorem, and so they do over every part of the way: where attention turns suddenly
    and the sum misses what the metric does there, the part is halved, prompt by prompt.
    ``tolerance`` is what the sum may miss, as a share of the mean |m(1) − m(0)| over prompts.

    Returns
    -------
    Integrals (prompt, layer, head), NaN in layers without an attention map, and m(1) − m(0)
    (prompt,).

    Source: Sundararajan et al., Axiomatic Attribution for Deep Networks (1703.01365).
    """
    encoded, count = encode_task(model, task), len(task)
    total = np.zeros((count, model.layers, model.heads))
    edges = np.linspace(0, 1, PARTS + 1)
    parts = [(row, low, high) for row in range(count) for low, high in pairwise(edges.tolist())]
    bar, change = -1.0, np.zeros(count)
    level_at: dict[tuple[int, float], float] = {}
    for depth in range(DEPTH):
        rows = [row for row, _, _ in parts]
        low, high = (np.asarray([part[side] for part in parts]) for side in (1, 2))
        middle, half = (low + high) / 2, (high - low) / 2
        points = [*zip(rows, low.tolist(), strict=True), *zip(rows, high.tolist(), strict=True)]
        fresh = sorted({*points} - level_at.keys())
        levels = _levels(model, encoded, metric, *map(list, zip(*fresh, strict=True)))
        level_at |= dict(zip(fresh, levels.tolist(), strict=True))
        before, after = np.asarray([level_at[point] for point in points]).reshape(2, -1)
        rise = after - before
        if not depth:
            np.add.at(change, rows, rise)
            bar = tolerance * float(np.abs(change).mean())
        gradients = sum(
            half[:, None, None]
            * _gradients(model, encoded, metric, rows, middle + side * half / np.sqrt(3))
            for side in (-1, 1)
        )
        missed = np.abs(np.nansum(gradients, axis=(1, 2)) - rise)
        good = missed <= bar * np.maximum(high - low, LEAST)
        good |= depth == DEPTH - 1
        np.add.at(total, np.asarray(rows)[good], gradients[good])
        parts = [
            piece
            for row, start, stop, converged in zip(rows, low, high, good, strict=True)
            if not converged
            for piece in ((row, start, (start + stop) / 2), (row, (start + stop) / 2, stop))
        ]
        if not parts:
            break
    return total, change


def patch_gradient(
    model: Model,
    task: Task | EncodedTask,
    metric: str,
    values: Float[Tensor, "prompt layer head query size"],
) -> Array:
    """Return the first-order change of the metric when heads take other outputs.

    ``(z' − z) · ∂m/∂z`` of every head, summed over positions, by one backward pass
    (prompt, layer, head), where ``values`` are the z'; NaN in layers without an attention map.

    Source: Nanda, Attribution Patching (2023).
    """
    encoded = encode_task(model, task)

    def slopes(rows: list[int]) -> Array:
        return _gradients(model, encoded, metric, rows, [0.0] * len(rows), values)

    return _shared(model, encoded, metric, values, "patch", slopes)


def _shared(
    model: Model,
    task: EncodedTask,
    metric: str,
    values: Tensor | None,
    name: str,
    slopes: Callable[[list[int]], Array],
) -> Array:
    """Return gradients (prompt, layer, head), as far as known from the effects of the run."""
    attending = model.geometry.attending

    def sweep(measuring: Model, rows: list[int], sets: Bool[Tensor, "set layer head"]) -> Array:
        return slopes(rows)[None, :, attending].reshape(1, len(rows), -1)

    answers = [AnswerMetric(metric, task.questions)]
    sets = head_sets.every_head(model)
    gradients = effects.shared(model, task, answers, sets, values, 0, sweep, gradient=name)
    return head_sets.fill_layers(model, gradients[0])


def _gradients(
    model: Model,
    task: EncodedTask,
    metric: str,
    rows: Sequence[int],
    at: Sequence[float] | Array,
    values: Tensor | None = None,
) -> Array:
    """Return gradients in a factor on every head of some prompts, at a number for each prompt."""
    result = np.full((len(rows), model.layers, model.heads), np.nan)
    answers = AnswerMetric(metric, task.questions)
    for batch, ids, positions in _batches(model, task, rows):
        prompts = [rows[row] for row in batch]
        factors = _factors(model, [float(at[row]) for row in batch]).requires_grad_()
        edit: Any = RowGate(factors) if values is None else RowBlend(factors, values[prompts])
        with torch.enable_grad():
            scores = answers(logits(model, ids, (edit,), positions), prompts, positions.tolist())
            (slope,) = torch.autograd.grad(scores.sum(), factors)
        result[batch] = slope.double().cpu().numpy()
    result[:, list(model.geometry.without)] = np.nan
    return result


def _levels(
    model: Model, task: EncodedTask, metric: str, rows: Sequence[int], gates: Sequence[float]
) -> Array:
    """Return the metric of prompts with all gates of each at one number (row,)."""
    result = np.full(len(rows), np.nan)
    answers = AnswerMetric(metric, task.questions)
    with torch.no_grad():
        for batch, ids, positions in _batches(model, task, rows):
            edit = RowGate(_factors(model, [float(gates[row]) for row in batch]))
            output = logits(model, ids, (edit,), positions)
            scores = answers(output, [rows[row] for row in batch], positions.tolist())
            result[batch] = scores.double().cpu().numpy()
    return result


def _factors(model: Model, values: Sequence[float]) -> Float[Tensor, "batch layer head"]:
    factors = torch.tensor(values, device=model.device)[:, None, None]
    return factors.repeat(1, model.layers, model.heads)


def _batches(model: Model, task: EncodedTask, rows: Sequence[int]) -> Iterator[Batch]:
    """Yield batches of prompts that a backward pass, which keeps every layer's numbers, can hold.

    What is yielded first are places in ``rows``.
    """
    ids, question_positions = (
        [part[row] for row in rows] for part in (task.ids, task.question_positions)
    )
    return ablation.question_batches(model, ids, question_positions, batch_tokens(model))


def batch_tokens(model: Model) -> int:
    """Return the tokens of a pass whose every layer is kept for a gradient."""
    config = model.module.config.get_text_config()
    # About twenty numbers of the width of the residual stream a layer are kept for the gradient.
    kept = 20 * model.layers * int(config.hidden_size) + model.vocabulary
    return max(1, min(ablation.SWEEP_TOKENS, 8 * ablation.NUMBERS // kept))

"""The head that is asked about, and the query and key of every prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from headscope.analyses._interventions.ablation import encode_task
from headscope.analyses._interventions.head_gradients import gate_gradient
from headscope.analyses._interventions.metrics import differentiable
from headscope.analyses._measurements import qk_rows
from headscope.analyses._runtime.results import attending, parse_head, top
from headscope.kernels.errors import NotApplicable
from headscope.probes.interventions.base import check_heads

if TYPE_CHECKING:
    import xarray as xr

    from headscope.analyses._stats.bootstrap import Array
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task
    from headscope.probes.prompts.tokens import EncodedTask

Head = tuple[int, int]
RULE = "key: the most attended one of the question position, the first token left out"


@dataclass(frozen=True)
class Pair:
    """A query, the key that it attends to, the runner-up among all other keys, and the weights."""

    query: int
    key: int
    rival: int
    weights: Float[np.ndarray, " key"]

    @property
    def weight(self) -> float:
        """Weight on the key; 1 up to rounding is 1."""
        return min(float(self.weights[self.key]), 1.0)


def last_questions(model: Model, task: Task) -> EncodedTask:
    """Return a task in the tokens of a model, with the last question of every prompt alone."""
    encoded = encode_task(model, task)
    last = tuple(questions[-1:] for questions in encoded.questions)
    if any(question.at < 2 for row in last for question in row):
        raise NotApplicable("task: a prompt asks at a token that sees no two other keys")
    return replace(encoded, questions=last)


def metric(task: Task | EncodedTask) -> str:
    """Return the metric of a task; where that is accuracy, which one key may not turn, its log."""
    return differentiable(task.metric)


def question_positions(task: EncodedTask) -> Int[np.ndarray, " prompt"]:
    """Return the position of the last question of every prompt."""
    return np.array([questions[-1].at for questions in task.questions])


def weights_at(capture: xr.Dataset, prompt: int, layer: int, query: int) -> Array:
    """Return the weights of one query of all heads of a layer (head, key)."""
    return qk_rows.rows(capture, prompt, layer, np.array([query])).weights()[:, 0]


def pair(row: Float[np.ndarray, " key"], query: int) -> Pair:
    """Return the most attended key but the first of a query's weights, and the runner-up.

    >>> attended = pair(np.array([0.6, 0.1, 0.3, 0.0]), 2)
    >>> attended.key, attended.rival, attended.weight
    (2, 0, 0.3)
    """
    visible = row[: query + 1]
    key = 1 + int(np.argmax(visible[1:]))
    rival = int(np.argmax(np.where(np.arange(len(visible)) == key, -1.0, visible)))
    return Pair(query, key, rival, row)


def of_head(capture: xr.Dataset, task: EncodedTask, head: Head) -> list[Pair]:
    """Return the pair of a head on every prompt."""
    return [
        pair(weights_at(capture, prompt, head[0], int(at))[head[1]], int(at))
        for prompt, at in enumerate(question_positions(task))
    ]


def key_weights(capture: xr.Dataset, task: EncodedTask) -> Float[np.ndarray, "prompt layer head"]:
    """Return the weight of every head on its key; NaN in layers without an attention map."""
    weights = np.full((len(task), capture.sizes["layer"], capture.sizes["head"]), np.nan)
    for prompt, at in enumerate(question_positions(task)):
        for layer in np.flatnonzero(attending(capture)):
            rows = weights_at(capture, prompt, int(layer), int(at))
            weights[prompt, layer] = [pair(row, int(at)).weight for row in rows]
    return weights


def chosen(capture: xr.Dataset, model: Model, task: EncodedTask, name: str) -> tuple[Head, str]:
    """Return the head of a name, or the one that the task needs and that attends to some token.

    Without a name it is the head, behind the first layer, with the largest product of its mean gate
    gradient and its mean weight on the key of the pair. The sentence says how it was chosen.
    """
    if name:
        head = parse_head(name)
        check_heads("head", [head], model.geometry)
        return head, "chosen by name"
    slopes = np.abs(gate_gradient(model, task, metric(task)).mean(0))
    mean = key_weights(capture, task).mean(0)
    if np.isfinite(mean).any(1).sum() < 2:
        raise NotApplicable(
            f"model: {model.name} has one layer with an attention map, so no head reads another; "
            "name a head"
        )
    mean[np.flatnonzero(attending(capture))[0]] = np.nan
    [head] = top(slopes * mean, 1)
    return head, "largest |gate gradient| × weight on its key"

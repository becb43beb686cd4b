"""Ablation of every head in turn on the prompts of a task, prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headscope import probes
from headscope.analyses._interventions.head_sweep import Array, Measure, Progress, every_head, swept
from headscope.probes.attention.forward import logits, score
from headscope.probes.prompts.prompt_batch import batches
from headscope.probes.prompts.reading import read
from headscope.probes.prompts.tokens import encode

if TYPE_CHECKING:
    import xarray as xr

    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

TOKENS = 8192


def mean_z(capture: xr.Dataset, first: int = 0) -> Float[Tensor, "layer head size"]:
    """Return each head's mean ``z`` over the positions, from ``first`` on, of all prompts."""
    z = capture["z"].isel(query=slice(first, None))
    mean = z.mean(("prompt", "query"), skipna=True).transpose("layer", "head", ...)
    return torch.from_numpy(np.ascontiguousarray(mean.values, dtype=np.float32))


def corrupted(model: Model, task: Task) -> xr.Dataset:
    """Capture ``z`` on the corrupted prompts of a task."""
    ids = encode(task, model.tokenizer).corrupted_ids
    return probes.capture(model, [list(each) for each in ids], stats=(), keep=("z",))


def outputs(capture: xr.Dataset) -> Float[Tensor, "prompt layer head query size"]:
    """Return the kept ``z`` of a capture."""
    z = capture["z"].transpose("prompt", "layer", "head", "query", ...)
    return torch.from_numpy(np.ascontiguousarray(z.values, dtype=np.float32))


def intact(model: Model, task: Task, metric: str) -> Array:
    """Return the metric of every prompt with no head taken out (prompt,)."""
    model.check_predicts()
    prompts = read(model, task)
    assert prompts.encoded is not None
    result = np.full(len(prompts.ids), np.nan)
    with torch.no_grad():
        for rows in batches(prompts.ids, TOKENS):
            output = logits(model, torch.tensor([prompts.ids[row] for row in rows]))
            asked = [prompts.encoded.questions[row] for row in rows]
            result[rows] = measure(output, asked, metric).cpu().numpy()
    return result


def leave_one_out(
    model: Model,
    task: Task,
    metric: str,
    values: Float[Tensor, ...] | None = None,
    progress: Progress | None = None,
    **how: Any,
) -> Array:
    """Return the metric of every prompt with one head taken out (prompt, layer, head).

    The parameters are those of :func:`leave_out`, with every head a set of its own.
    """
    left = leave_out(model, task, (metric,), every_head(model), values, progress, **how)
    return spread(model, left[0])


def leave_out(
    model: Model,
    task: Task,
    metrics: Sequence[str],
    chosen: Bool[Tensor, "set layer head"],
    values: Float[Tensor, ...] | None = None,
    progress: Progress | None = None,
    *,
    on: str = "clean",
    labels: Sequence[Sequence[Sequence[Any]]] = (),
    first: int = 0,
) -> Array:
    """Return the metrics of every prompt with sets of heads taken out (metric, prompt, set).

    Parameters
    ----------
    model, task
        What is measured.
    metrics
        Metrics of the answers.
    chosen
        The sets of heads.
    values, first, progress
        As in `sweeping.swept`.
    on
        ``clean`` or ``corrupted`` prompts; the questions are those of the clean ones.
    labels
        For each metric the questions of every prompt, as many as the task has; the task's own
        without them.
    """
    ids, asked = asked_of(model, task, on)
    given = list(labels) or [asked]
    # One pass answers the questions of all labels; each metric is told which ones are its own.
    together = [[one for each in given for one in each[row]] for row in range(len(asked))]

    def of(number: int, metric: str) -> Measure:
        def one(output: Tensor, put: Sequence[Any], rows: Sequence[int]) -> Tensor:
            size = [len(each) // len(given) for each in put]
            own = [
                each[number * count : (number + 1) * count]
                for each, count in zip(put, size, strict=True)
            ]
            return measure(output, own, metric)

        return one

    measures = [of(at if labels else 0, metric) for at, metric in enumerate(metrics)]
    return swept(model, ids, together, measures, chosen, values, first=first, progress=progress)


def asked_of(
    model: Model, task: Task, on: str = "clean"
) -> tuple[Sequence[Sequence[int]], Sequence[Sequence[Any]]]:
    """Return the token ids of the clean or corrupted prompts of a task, and its questions.

    Raises
    ------
    HeadscopeError
        When the model predicts no next token.
    """
    model.check_predicts()
    prompts = read(model, task)
    assert prompts.encoded is not None
    ids = prompts.ids if on == "clean" else prompts.encoded.corrupted_ids
    return ids, prompts.encoded.questions


def spread(model: Model, values: Array) -> Array:
    """Lay heads of layers with an attention map over all layers (..., layer, head); NaN elsewhere.

    The columns of ``values`` are heads, or KV heads, of these layers in order.
    """
    attending = model.geometry.attending
    inner = values.reshape(*values.shape[:-1], len(attending), -1)
    every = np.full((*values.shape[:-1], model.layers, inner.shape[-1]), np.nan)
    every[..., attending, :] = inner
    return every


def sweep(
    model: Model,
    task: Task,
    measures: Sequence[Measure],
    values: Float[Tensor, ...] | None = None,
    progress: Progress | None = None,
) -> Array:
    """Take every head out in turn and return all measures (measure, prompt, layer, head).

    NaN in layers without an attention map. Measures see the logits of all positions; the other
    parameters are those of `sweeping.swept`.
    """
    ids, asked = asked_of(model, task)
    found = swept(
        model, ids, asked, measures, every_head(model), values, whole=True, progress=progress
    )
    return spread(model, found)


def measure(
    output: Float[Tensor, "batch position vocab"], asked: Sequence[Sequence[Any]], metric: str
) -> Float[Tensor, " batch"]:
    """Score the answers by a task's metric, or by ``log_probability``, which has a gradient."""
    if metric != "log_probability":
        return score(output, asked, metric)
    rows = []
    for row, questions in enumerate(asked):
        chances = [
            output[row, each.at].float().log_softmax(-1)[list(each.answer_ids)].logsumexp(0)
            for each in questions
        ]
        rows.append(torch.stack(chances).mean())
    return torch.stack(rows)

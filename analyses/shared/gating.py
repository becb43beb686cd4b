"""Ablation of every head in turn, and the gradient of a gate on every head, prompt by prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from headscope import probes
from headscope.kernels.refusal import Refused
from headscope.probes.edit import Edit
from headscope.probes.forward import logits, score
from headscope.probes.prompts import batches, read
from headscope.probes.tokens import encode

if TYPE_CHECKING:
    import xarray as xr

    from headscope.probes.model import Geometry, Model
    from headscope.probes.task import Task

Array = NDArray[np.float64]
Progress = Callable[[int, int], None]
Measure = Callable[[Tensor, Sequence[Any], Sequence[int]], Tensor]

TOKENS = 8192


@dataclass(frozen=True)
class RowGate(Edit):
    """Multiply the output of every head by a number of its own in every row of the batch."""

    values: Float[Tensor, "batch layer head"]

    def apply(
        self, layer: int, z: Float[Tensor, "batch head query size"]
    ) -> Float[Tensor, "batch head query size"]:
        """Scale the heads of one layer, row by row."""
        return z * self.values[:, layer].to(z)[:, :, None, None]

    def check(self, shape: Geometry) -> None:
        """Refuse gates of another shape."""
        _check_shape(self.values, shape)

    def describe(self) -> dict[str, object]:
        """Name the edit."""
        return {"edit": "RowGate", "rows": len(self.values)}


@dataclass(frozen=True)
class RowReplace(Edit):
    """Put a fixed vector in place of chosen heads, chosen anew in every row of the batch."""

    chosen: Bool[Tensor, "batch layer head"]
    values: Float[Tensor, "layer head size"]

    def apply(
        self, layer: int, z: Float[Tensor, "batch head query size"]
    ) -> Float[Tensor, "batch head query size"]:
        """Replace the chosen heads of one layer, row by row."""
        fixed = self.values[layer].to(z)[:, None, :].expand_as(z)
        return torch.where(self.chosen[:, layer].to(z.device)[:, :, None, None], fixed, z)

    def check(self, shape: Geometry) -> None:
        """Refuse choices of another shape."""
        _check_shape(self.chosen, shape)

    def describe(self) -> dict[str, object]:
        """Name the edit."""
        return {"edit": "RowReplace", "rows": len(self.chosen)}


@dataclass(frozen=True)
class RowPatch(Edit):
    """Put other outputs, position by position, in place of heads chosen anew in every row.

    The rows of the batch are the rows of ``values`` over and over.
    """

    chosen: Bool[Tensor, "batch layer head"]
    values: Float[Tensor, "row layer head query size"]

    def apply(
        self, layer: int, z: Float[Tensor, "batch head query size"]
    ) -> Float[Tensor, "batch head query size"]:
        """Replace the chosen heads of one layer, row by row."""
        other = self.values[:, layer, :, : z.shape[2]].to(z)
        other = other.repeat(len(z) // len(other), 1, 1, 1)
        return torch.where(self.chosen[:, layer].to(z.device)[:, :, None, None], other, z)

    def check(self, shape: Geometry) -> None:
        """Refuse choices of another shape."""
        _check_shape(self.chosen, shape)

    def describe(self) -> dict[str, object]:
        """Name the edit."""
        return {"edit": "RowPatch", "rows": len(self.chosen)}


def _check_shape(values: Tensor, shape: Geometry) -> None:
    if tuple(values.shape[1:]) != (shape.layers, shape.heads):
        raise Refused(
            f"values: shape {tuple(values.shape)}; "
            f"the model has {shape.layers} layers × {shape.heads} heads"
        )


def mean_z(capture: xr.Dataset) -> Float[Tensor, "layer head size"]:
    """Return each head's mean ``z`` over the positions of all captured prompts."""
    mean = capture["z"].mean(("prompt", "query"), skipna=True).transpose("layer", "head", ...)
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
) -> Array:
    """Return the metric of every prompt with one head taken out (prompt, layer, head).

    The parameters are those of :func:`sweep`, with one metric.
    """

    def one(output: Tensor, asked: Sequence[Any], rows: Sequence[int]) -> Tensor:
        return measure(output, asked, metric)

    return np.asarray(sweep(model, task, (one,), values, progress)[0])


def sweep(
    model: Model,
    task: Task,
    measures: Sequence[Measure],
    values: Float[Tensor, ...] | None = None,
    progress: Progress | None = None,
) -> Array:
    """Take every head out in turn and return all measures (measure, prompt, layer, head).

    NaN in layers without an attention map, which have no heads to take out.

    Parameters
    ----------
    model, task
        What is measured.
    measures
        Each is called with the logits of a batch, the questions of its rows, and which prompts
        these are; it returns one number a row.
    values
        What is put in place of a head's output: one vector a head (layer, head, size), or the
        outputs on other prompts (prompt, layer, head, query, size); zero without them.
    progress
        Called with (done, total) heads times prompts.
    """
    layers, width = model.layers, model.heads
    single = torch.eye(layers * width, dtype=torch.bool).reshape(layers, width, layers, width)
    single = single[model.geometry.attending].flatten(0, 1)
    count = len(single)
    prompts = read(model, task)
    assert prompts.encoded is not None
    result = np.full((len(measures), len(prompts.ids), count), np.nan)
    done = 0
    for rows in batches(prompts.ids, TOKENS):
        ids = torch.tensor([prompts.ids[row] for row in rows])
        asked = [prompts.encoded.questions[row] for row in rows]
        together = max(1, TOKENS // ids.numel())
        for start in range(0, count, together):
            chosen = single[start : start + together].repeat_interleave(len(rows), dim=0)
            edit: Any
            if values is None:
                edit = RowGate((~chosen).float())
            elif values.ndim == 3:
                edit = RowReplace(chosen, values)
            else:
                edit = RowPatch(chosen, values[rows])
            heads = len(chosen) // len(rows)
            with torch.no_grad():
                output = logits(model, ids.repeat(heads, 1), (edit,))
                for number, one in enumerate(measures):
                    scores = one(output, asked * heads, rows * heads).cpu().numpy()
                    result[number, rows, start : start + heads] = scores.reshape(heads, -1).T
            done += len(chosen)
            if progress is not None:
                progress(done, len(prompts.ids) * count)
    shape = (len(measures), len(prompts.ids))
    every = np.full((*shape, layers, width), np.nan)
    every[:, :, model.geometry.attending] = result.reshape(*shape, -1, width)
    return every


def gate_gradient(model: Model, task: Task, metric: str) -> Array:
    """Return the gradient of the metric in a gate on every head, at 1 (prompt, layer, head).

    Prompts of a batch have gates of their own, so that one backward pass keeps them apart. NaN in
    layers without an attention map.
    """
    prompts = read(model, task)
    assert prompts.encoded is not None
    result = np.full((len(prompts.ids), model.layers, model.heads), np.nan)
    for rows in batches(prompts.ids, TOKENS):
        ids = torch.tensor([prompts.ids[row] for row in rows])
        asked = [prompts.encoded.questions[row] for row in rows]
        gates = torch.ones(
            len(rows), model.layers, model.heads, device=model.device, requires_grad=True
        )
        with torch.enable_grad():
            output = logits(model, ids, (RowGate(gates),))
            (slope,) = torch.autograd.grad(measure(output, asked, metric).sum(), gates)
        result[rows] = slope.double().cpu().numpy()
    result[:, list(model.geometry.without)] = np.nan
    return result


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

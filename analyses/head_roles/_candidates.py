"""Candidate words of a question: how heads attend to them, copy them and suppress them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from headscope.analyses._measurements.head_outputs import output_weights
from headscope.analyses._measurements.unembedding import read_out
from headscope.analyses._runtime.results import require_prompts
from headscope.analyses._stats.length_trend import Array, mean
from headscope.kernels.errors import NotApplicable
from headscope.probes import capture as capture_prompts
from headscope.probes.models.model import Model
from headscope.probes.prompts.reading import read
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tokens import EncodedTask


@dataclass(frozen=True)
class Candidates:
    """Weight from the question to candidates, and the share of questions where they are copied.

    All have the dims prompt, layer, head. The candidates are the answer and the wrong answers.
    """

    to_answer: Array
    to_wrong: Array
    copies: Array
    suppresses: Array
    suppresses_wrong: Array


def read_task(capture: xr.Dataset, model: Model, task: Task) -> EncodedTask:
    """Return the task in tokens; refuse a capture that is not of its prompts."""
    encoded = read(model, task).encoded
    assert encoded is not None
    require_prompts(capture, len(encoded.ids))
    return encoded


def measure(capture: xr.Dataset, model: Model, task: Task, k: int) -> Candidates:
    """Measure what heads do with the candidates of every question.

    A head copies a word where its value at the word, through its output projection, the final norm
    and the unembedding, has the word among the ``k`` largest logits; it suppresses the word where
    it is among the ``k`` smallest.
    """
    encoded = read_task(capture, model, task)
    mass = capture["target_mass"].sel(target="evidence")
    mass = mass.transpose("prompt", "layer", "head", "query")
    weight = mass.mean("query", skipna=True).values.astype(np.float64)
    value = capture["v"].transpose("prompt", "layer", "kv_head", "key", ...)
    group = capture["kv_group"].values.astype(int)
    projection = output_weights(model).cpu().float()
    copies, suppresses, suppresses_wrong = np.zeros((3, *weight.shape))
    wrong_positions: list[list[list[int]]] = []
    for row, (ids, questions) in enumerate(zip(encoded.ids, encoded.questions, strict=True)):
        if not all(question.evidence for question in questions):
            raise NotApplicable("evidence: a question names none; give the positions of the answer")
        wrong_positions.append([[] for _ in ids])
        for question in questions:
            wrong = [
                at for at, token in enumerate(ids[: question.at + 1]) if token in question.wrong_ids
            ]
            wrong_positions[row][question.at] = wrong
            for positions, results in (
                (list(question.evidence), ((copies, True), (suppresses, False))),
                (wrong, ((suppresses_wrong, False),)),
            ):
                if not positions:
                    continue
                values = torch.from_numpy(value.values[row][:, group][:, :, positions]).float()
                outputs = torch.einsum("lhps,lhsr->lhpr", values, projection)
                logits = read_out(model, outputs)
                words = torch.tensor([ids[at] for at in positions])
                for result, largest in results:
                    result[row] += _hits(logits, words, k, largest) / len(questions)
    for result in (copies, suppresses, suppresses_wrong):
        result[:, list(model.geometry.without)] = np.nan
    to_wrong = _wrong(model, task, wrong_positions)
    return Candidates(weight, to_wrong, copies, suppresses, suppresses_wrong)


def _hits(logits: Tensor, words: Tensor, k: int, largest: bool) -> Array:
    """Return the share of words among the ``k`` largest, or smallest, logits (layer, head)."""
    best = logits.topk(k, dim=-1, largest=largest).indices
    hit = (best == words[:, None]).any(-1).double().mean(-1)
    return np.asarray(hit.numpy())


def _wrong(model: Model, task: Task, positions: Sequence[Sequence[Sequence[int]]]) -> Array:
    """Return the weight from the questions to the wrong answers; 0 where none is in the text."""
    captured = capture_prompts(model, task, stats=("target_mass",), targets={"wrong": positions})
    mass = captured["target_mass"].isel(target=0)
    result = np.nan_to_num(mean(mass.transpose("prompt", "layer", "head", "query").values))
    result[:, list(model.geometry.without)] = np.nan
    return result

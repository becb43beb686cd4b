"""Candidate words of a question: how heads look at them, copy them and suppress them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task


@dataclass(frozen=True)
class Candidates:
    """Weight from the question to candidates, and the share of questions where they are copied.

    All have the dims prompt, layer, head. The candidates are the answer and the wrong answers.
    """

    to_answer: NDArray[np.float64]
    to_wrong: NDArray[np.float64]
    copies: NDArray[np.float64]
    suppresses: NDArray[np.float64]
    suppresses_wrong: NDArray[np.float64]


def look(capture: xr.Dataset, model: Model, task: Task, k: int) -> Candidates:
    """Read what heads do with the candidates of every question.

    A head copies a word where its value at the word, through its output projection, the final norm
    and the unembedding, has the word among the ``k`` largest logits; it suppresses the word where
    it is among the ``k`` smallest.

    Raises
    ------
    NotApplicable
        When a question names no evidence, or the capture is of other prompts.
    """
    import torch

    from headscope.analyses._measurements.head_outputs import output_weights
    from headscope.probes.prompts.reading import read

    given = read(model, task)
    assert given.encoded is not None
    if len(given.ids) != capture.sizes["prompt"]:
        raise NotApplicable(
            f"capture: it holds {capture.sizes['prompt']} prompts and the task has "
            f"{len(given.ids)}; capture this task"
        )
    order = ("prompt", "layer", "head", "query")
    mass = capture["target_mass"].sel(target="evidence").transpose(*order)
    weight = mass.mean("query", skipna=True).values.astype(np.float64)
    value = capture["v"].transpose("prompt", "layer", "kv_head", "key", ...)
    group = capture["kv_group"].values.astype(int)
    projection = output_weights(model).cpu().float()
    copies, suppresses, wrongly = np.zeros((3, *weight.shape))
    listed: list[list[list[int]]] = []
    for row, (ids, asked) in enumerate(zip(given.ids, given.encoded.questions, strict=True)):
        if not all(each.evidence for each in asked):
            raise NotApplicable("evidence: a question names none; give the positions of the answer")
        listed.append([[] for _ in ids])
        for each in asked:
            places = [at for at, one in enumerate(ids[: each.at + 1]) if one in each.wrong_ids]
            listed[row][each.at] = places
            for found, results in (
                (each.evidence, ((copies, 1), (suppresses, -1))),
                (tuple(places), ((wrongly, -1),)),
            ):
                if not found:
                    continue
                taken = torch.from_numpy(value.values[row][:, group][:, :, list(found)]).float()
                said = torch.einsum("lhps,lhsr->lhpr", taken, projection)
                words = torch.tensor([ids[at] for at in found])
                for result, sign in results:
                    result[row] += _hits(model, said, words, k, sign) / len(asked)
    for result in (copies, suppresses, wrongly):
        result[:, list(model.geometry.without)] = np.nan
    return Candidates(weight, _wrong(model, task, listed), copies, suppresses, wrongly)


def _hits(model: Model, said: object, words: object, k: int, sign: int) -> NDArray[np.float64]:
    """Return the share of words that are among the ``k`` best logits (layer, head)."""
    import torch

    from headscope.analyses._measurements.unembedding import read_out

    assert isinstance(said, torch.Tensor)
    assert isinstance(words, torch.Tensor)
    best = (sign * read_out(model, said)).topk(k, dim=-1).indices
    hit = (best == words[:, None]).any(-1).double().mean(-1)
    return np.asarray(hit.numpy())


def _wrong(
    model: Model, task: Task, listed: Sequence[Sequence[Sequence[int]]]
) -> NDArray[np.float64]:
    """Return the weight from the questions to the wrong answers; 0 where none is in the text."""
    from headscope.probes import capture as capture_prompts

    found = capture_prompts(model, task, stats=("target_mass",), targets={"wrong": listed})
    mass = found["target_mass"].isel(target=0).transpose("prompt", "layer", "head", "query").values
    known = ~np.isnan(mass)
    total = np.where(known, mass, 0.0).sum(-1).astype(np.float64)
    result = total / np.maximum(known.sum(-1), 1)
    result[:, list(model.geometry.without)] = np.nan
    return np.asarray(result)

"""Decode steps of planted needles: where each head attends, and what the model generates."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from transformers import StoppingCriteriaList

from headscope.analyses.retrieval_heads._copying import (
    copied,
    multiset_score,
    rouge_1_recall,
    set_score,
)
from headscope.kernels.api import Request
from headscope.probes.attention.forward import Reader, run, unembedding_at
from headscope.probes.capturing.generation import generate
from headscope.probes.interventions.base import Edit
from headscope.probes.models.model import Model
from headscope.probes.prompts.tokens import EncodedQuestion

Questions = Sequence[EncodedQuestion]
Scores = tuple[NDArray[np.float64], NDArray[np.float64], float, NDArray[np.float64]]
# High end and formula of each form of the retrieval score.
FORMS = {
    "set": (1, "|g ∩ k| / |k|, as in the paper"),
    "multiset": (None, "copying steps / needle length, as in the released code; can exceed 1"),
}
# What a decode step is, and which prompts count.
DECODINGS = {
    "teacher_forced": "decode step = question, teacher-forced; prompts with more than {least} "
    "of the needle generated count",
    "greedy": "decode step = token of the greedy answer, {new_tokens} at most, to the first "
    "question; prompts whose answer has a ROUGE-1 recall of the needle above {least} count",
}


def decode_steps(
    model: Model, ids: Sequence[int], questions: Questions
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read the decode steps of one prompt in one pass, keeping nothing else of any row.

    Returned are the key with the largest weight (step, layer, head), -1 in layers without
    attention, and the most probable next token (step,).
    """
    at = [question.at for question in questions]
    shape = model.geometry
    attended = np.full((len(at), shape.layers, shape.heads), -1, dtype=np.int64)

    def take(call: Any, outputs: dict[str, Any], z: Any) -> None:
        rows = outputs["topk_key"][0, :, at, 0].cpu().numpy()
        attended[:, call.layer] = np.nan_to_num(rows, nan=-1.0).T

    reader = Reader(Request(stats=("topk_key",), k=1), take=take)
    with torch.no_grad(), unembedding_at(model, torch.tensor([at])) as finish:
        logits = finish(run(model, torch.tensor([list(ids)]), reader, head=True))[0]
    return attended, np.asarray(logits.argmax(-1).cpu().numpy(), dtype=np.int64)


def evidence_weight(captured: xr.Dataset) -> NDArray[np.float64]:
    """Return the mean weight of the questions on their evidence (prompt, layer, head)."""
    mass = captured["target_mass"].sel(target="evidence")
    mass = mass.transpose("prompt", "layer", "head", "query").mean("query", skipna=True)
    return np.asarray(mass.values, dtype=np.float64)


def greedy_steps(
    model: Model,
    ids: Sequence[int],
    questions: Questions,
    new_tokens: int,
    edits: Sequence[Edit] = (),
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Decode the answer to the first question, to the end of the line; return as `decode_steps`.

    As in the released code the edits hold while it decodes, from the last token of the prompt on.
    """
    prompt = opening(ids, questions)

    def ends(token_ids: Any, scores: Any, **_: Any) -> Any:
        line = model.tokenizer is not None and "\n" in model.tokenizer.decode(token_ids[0, -1:])
        return torch.full((1,), line, device=token_ids.device)

    generated = generate(
        model, [prompt], ("topk_key",), edits, new_tokens=new_tokens, k=1,
        prefill_edited=False, options={"stopping_criteria": StoppingCriteriaList([ends])},
    ).isel(prompt=0)  # fmt: skip
    rows = generated["topk_key"].sel(rank=1).transpose("query", "layer", "head").values
    attended = np.nan_to_num(rows[len(prompt) - 1 : -1], nan=-1.0).astype(np.int64)
    return attended, generated["token_id"].values[len(prompt) :].astype(np.int64)


def recall(
    model: Model,
    ids: Sequence[int],
    questions: Questions,
    new_tokens: int,
    edits: Sequence[Edit] = (),
) -> float:
    """Return the ROUGE-1 recall of the needle in the model's greedy answer under edits."""
    return _rouge(model, ids, questions, greedy_steps(model, ids, questions, new_tokens, edits)[1])


def _rouge(
    model: Model, ids: Sequence[int], questions: Questions, generated: NDArray[Any]
) -> float:
    needle = [ids[position] for position in evidence(questions)]
    return rouge_1_recall(_rouge_words(model, needle), _rouge_words(model, generated))


def _rouge_words(model: Model, ids: Sequence[int] | NDArray[Any]) -> list[str]:
    """Return the words of some tokens, in small letters; the tokens where none knows words."""
    if model.tokenizer is None:
        return [str(token) for token in ids]
    return re.findall(r"\w+", model.tokenizer.decode([int(token) for token in ids]).lower())


def opening(ids: Sequence[int], questions: Questions) -> list[int]:
    """Return a prompt up to its first question."""
    return list(ids[: min(question.at for question in questions) + 1])


def evidence(questions: Questions) -> list[int]:
    """Return the positions of the needle: the evidence of all the questions."""
    return sorted({position for question in questions for position in question.evidence})


def score(
    model: Model, ids: Sequence[int], questions: Questions, decoding: str, new_tokens: int
) -> Scores:
    """Score one prompt: set and multiset score, share recalled, share of steps that look right.

    The scores and the last are by (layer, head); layers that attend nowhere (-1) have none. Of the
    needle, the evidence of all questions, the model generates the share recalled: questions that it
    answers, or the ROUGE-1 recall of its greedy answer.
    """
    needle = evidence(questions)
    if decoding == "greedy":
        attended, generated = greedy_steps(model, ids, questions, new_tokens)
        recalled = _rouge(model, ids, questions, generated)
        targets: Sequence[Sequence[int]] = [needle] * len(attended)
        tokens = np.asarray([*opening(ids, questions), *generated], dtype=np.int64)
    else:
        attended, generated = decode_steps(model, ids, questions)
        rows = zip(generated, questions, strict=True)
        recalled = float(np.mean([token in question.answer_ids for token, question in rows]))
        targets = [question.evidence for question in questions]
        tokens = np.asarray(ids, dtype=np.int64)
    copies, needle_ids = copied(attended, generated, tokens, tuple(needle)), tokens[needle]
    hits = [np.isin(rows, target) for rows, target in zip(attended, targets, strict=True)]
    blind = (attended < 0).all(0)
    sets, multisets, matched = (
        np.where(blind, np.nan, values)
        for values in (
            set_score(copies, generated, needle_ids),
            multiset_score(copies, needle_ids),
            np.mean(hits, axis=0),
        )
    )
    return sets, multisets, recalled, matched

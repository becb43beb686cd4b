"""Decode steps of planted needles: where each head looks, and what the model generates."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses.retrieval_heads._copying import copied, multiset_score, set_score
from headscope.kernels.api import Request
from headscope.probes.attention.forward import Reader, run
from headscope.probes.models.model import Model
from headscope.probes.prompts.tokens import EncodedQuestion

Questions = Sequence[EncodedQuestion]
Scores = tuple[NDArray[np.float64], NDArray[np.float64], float]
# High end and formula of each form of the retrieval score.
FORMS = {
    "set": (1, "|g ∩ k| / |k|, as in the paper"),
    "multiset": (None, "copying steps / needle length, as in the released code; can exceed 1"),
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
    looked = np.full((len(at), shape.layers, shape.heads), -1, dtype=np.int64)

    def take(call: Any, outputs: dict[str, Any], z: Any) -> None:
        rows = outputs["topk_key"][0, :, at, 0].cpu().numpy()
        looked[:, call.layer] = np.nan_to_num(rows, nan=-1.0).T

    reader = Reader(Request(stats=("topk_key",), k=1), take=take)
    with torch.no_grad():
        logits = run(model, torch.tensor([list(ids)]), reader, head=True)[0, at]
    return looked, np.asarray(logits.argmax(-1).cpu().numpy(), dtype=np.int64)


def evidence_weight(captured: xr.Dataset) -> NDArray[np.float64]:
    """Return the mean weight of the questions on their evidence (prompt, layer, head)."""
    mass = captured["target_mass"].sel(target="evidence")
    mass = mass.transpose("prompt", "layer", "head", "query").mean("query", skipna=True)
    return np.asarray(mass.values, dtype=np.float64)


def score(
    ids: Sequence[int], questions: Questions, looked: NDArray[Any], generated: NDArray[Any]
) -> Scores:
    """Return set score and multiset score (layer, head), and the share of the needle recalled.

    The needle is the evidence of all the questions; each question is one decode step. Layers that
    look nowhere (-1) have no score.
    """
    tokens = np.asarray(ids, dtype=np.int64)
    needle = tuple(sorted({place for question in questions for place in question.evidence}))
    copies = copied(looked, generated, tokens, needle)
    right = [
        token in question.answer_ids for token, question in zip(generated, questions, strict=True)
    ]
    needle_ids = tokens[list(needle)]
    blind = (looked < 0).all(0)
    sets = np.where(blind, np.nan, set_score(copies, generated, needle_ids))
    multisets = np.where(blind, np.nan, multiset_score(copies, needle_ids))
    return sets, multisets, float(np.mean(right))


def right(questions: Questions, looked: NDArray[Any]) -> NDArray[np.float64]:
    """Return the share of steps whose largest weight lies on the evidence (layer, head)."""
    hits = [
        np.isin(rows, question.evidence) for rows, question in zip(looked, questions, strict=True)
    ]
    return np.where((looked < 0).all(0), np.nan, np.mean(hits, axis=0))

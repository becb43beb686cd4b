"""Measure the Python model on files it was not trained on."""

import platform
import random
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from headscope.probes.prompts.library import LibraryFile, read_library
from headscope_training.evaluation import (
    Heads,
    draw_other_heads,
    head_scores,
    mean_of,
    predict_next,
    to_json,
    without,
)

SEED = 9_021
WINDOW = 1024
# Windows of held-out files that are measured, one in so many.
EVERY = 3
PERIODS = (16, 64, 256, 500)
SMOOTHING = (1.0, 5.0, 20.0, 80.0)
POSITIONS = (0, 16, 64, 256, 512, 1024)
LEAST_SCORE = 0.4
DRAWS = 3


def windows(tokenizer: Any, files: Iterable[LibraryFile]) -> list[Tensor]:
    """Token ids of files in stretches of at most 1024, each behind the end-of-text token."""
    rows = []
    for file in files:
        ids = tokenizer(file.text, add_special_tokens=False, verbose=False)["input_ids"]
        for start in range(0, len(ids), WINDOW - 1):
            rows.append(torch.tensor([0, *ids[start : start + WINDOW - 1]]))
    return [row for row in rows if len(row) > 1]


class BigramModel:
    """Unigram and bigram counts of a training text, and the predictions they make."""

    def __init__(self, rows: Iterable[Tensor], size: int) -> None:
        stream = torch.cat(list(rows))
        pairs = stream[:-1] * size + stream[1:]
        self.counts = torch.bincount(pairs, minlength=size * size).view(size, size).float()
        self.single = (self.counts.sum(0) + 1) / (self.counts.sum() + size)

    def loss(self, before: Tensor, after: Tensor, smoothing: float) -> Tensor:
        """Cross-entropy of tokens behind others; `smoothing` is the weight of the unigrams."""
        counts, total = self.counts[before, after], self.counts.sum(1)[before]
        return -((counts + smoothing * self.single[after]) / (total + smoothing)).log()

    def score(self, rows: Sequence[Tensor]) -> dict[str, dict[str, float]]:
        """Loss and accuracy of both; the smoothing is the best one for these very rows."""
        before, after = torch.cat([row[:-1] for row in rows]), torch.cat([row[1:] for row in rows])
        losses = [self.loss(before, after, weight).mean().item() for weight in SMOOTHING]
        return {
            "unigram": {
                "loss": round(-self.single[after].log().mean().item(), 4),
                "accuracy": mean_of(after == self.single.argmax()),
            },
            "bigram": {
                "loss": round(min(losses), 4),
                "accuracy": mean_of(after == self.counts.argmax(1)[before]),
            },
        }


def held_out(model: GPT2LMHeadModel, rows: Sequence[Tensor]) -> dict[str, Any]:
    """Loss and accuracy over rows, over all and by position."""
    predictions = [predict_next(model, row[None]) for row in rows]
    losses, right = (torch.cat(parts, 1)[0].double() for parts in zip(*predictions, strict=True))
    positions = torch.cat([torch.arange(len(row) - 1) for row in rows])
    return {
        "tokens": len(losses),
        "loss": mean_of(losses),
        "accuracy": mean_of(right),
        "loss_by_position": {
            f"{low}_to_{high - 1}": mean_of(losses[(positions >= low) & (positions < high)])
            for low, high in pairwise(POSITIONS)
        },
    }


def repeated(model: GPT2LMHeadModel, period: int, rows: int = 8) -> Tensor:
    """Random tokens said twice behind the end-of-text token (row, 2 * period + 1)."""
    generator = torch.Generator().manual_seed(SEED + period)
    half = torch.randint(1, model.config.vocab_size, (rows, period), generator=generator)
    return functional.pad(half.repeat(1, 2), (1, 0))


def copying_accuracy(model: GPT2LMHeadModel, period: int) -> float:
    """Top-1 accuracy on the second time of random tokens, its first token left out."""
    return mean_of(predict_next(model, repeated(model, period))[1][:, period + 1 :])


def best_heads(scores: Tensor) -> list[tuple[int, int]]:
    """Heads above 0.4, best first; the best one where none is."""
    width = scores.shape[1]
    order = scores.flatten().argsort(descending=True).tolist()
    count = max(1, int((scores > LEAST_SCORE).sum()))
    return [(number // width, number % width) for number in order[:count]]


def knocked_out(
    model: GPT2LMHeadModel, heads: Heads, rows: Sequence[Tensor], circuit: Heads = ()
) -> dict[str, dict[str, float]]:
    """Copying (halves of 64) and held-out loss: intact, without heads, without as many others.

    The others are drawn outside of the heads and of the circuit that they belong to.
    """

    def measure(ablated: Heads) -> dict[str, float]:
        changed = without(model, ablated)
        losses = [predict_next(changed, row[None])[0][0] for row in rows]
        return {
            "copied": copying_accuracy(changed, 64),
            "loss": round(torch.cat(losses).mean().item(), 4),
        }

    drawn = [measure(others) for others in draw_other_heads(model, heads, circuit, DRAWS, SEED)]
    return {
        "intact": measure(()),
        "these_heads": measure(heads),
        "as_many_others_worst": {
            "copied": min(scores["copied"] for scores in drawn),
            "loss": max(scores["loss"] for scores in drawn),
        },
    }


def card(source: Path) -> str:
    """Measure a folder on the library of the running Python; losses in nats a token, top-1."""
    model: Any = GPT2LMHeadModel.from_pretrained(source)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
    learned_files, held_out_files = read_library(held_out=False), read_library(held_out=True)
    learned, rows = windows(tokenizer, learned_files), windows(tokenizer, held_out_files)[::EVERY]
    few = random.Random(SEED).sample(rows, 8)
    scores = head_scores(model, repeated(model, 64))
    best = {kind: best_heads(array) for kind, array in scores.items()}
    circuit = [*best["induction"], *best["previous"]]
    numbers = {
        "corpus": {
            "python": platform.python_version(),
            "files": len(learned_files),
            "characters": sum(len(file.text) for file in learned_files),
            "tokens": sum(len(row) for row in learned),
            "held_out_files": len(held_out_files),
            "held_out_characters": sum(len(file.text) for file in held_out_files),
        },
        "held_out": {
            "windows": len(rows),
            **held_out(model, rows),
            **BigramModel(learned, model.config.vocab_size).score(rows),
        },
        "repeated": {f"half_{period}": copying_accuracy(model, period) for period in PERIODS},
        "heads": {
            kind: {f"L{i}H{j}": round(scores[kind][i, j].item(), 3) for i, j in heads}
            for kind, heads in best.items()
        },
        "knocked_out": {
            kind: knocked_out(model, best[kind], few, circuit) for kind in ("induction", "previous")
        },
    }
    return to_json(numbers)

"""Measure the model on files it was not trained on; the model card's numbers as JSON.

Run by hand: ``python -P -m headscope.probes.bundled_python.evaluate [FOLDER] [--out FILE]``. The
forward pass and the attention maps are transformers' own, so the numbers do not depend on
headscope's capture.
"""

from __future__ import annotations

import argparse
import copy
import json
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

from headscope.probes.bundled_python import folder
from headscope.probes.bundled_python.corpus import Source, sources

SEED = 9_021
WINDOW = 1024
# Windows of held-out files that are measured, one in so many.
EVERY = 3
PERIODS = (16, 64, 256, 500)
STRENGTHS = (1.0, 5.0, 20.0, 80.0)
PARTS = (0, 16, 64, 256, 512, 1024)
LEAST_SCORE = 0.4
DRAWS = 3

Heads = Sequence[tuple[int, int]]


def windows(tokenizer: Any, files: Iterable[Source]) -> list[Tensor]:
    """Token ids of files in stretches of at most 1024, each behind the end-of-text token."""
    found = []
    for file in files:
        ids = tokenizer(file.text, add_special_tokens=False, verbose=False)["input_ids"]
        for start in range(0, len(ids), WINDOW - 1):
            found.append(torch.tensor([0, *ids[start : start + WINDOW - 1]]))
    return [one for one in found if len(one) > 1]


class Pairs:
    """Unigram and bigram counts of a training text, and the predictions they make."""

    def __init__(self, rows: Iterable[Tensor], size: int) -> None:
        stream = torch.cat(list(rows))
        pairs = stream[:-1] * size + stream[1:]
        self.counts = torch.bincount(pairs, minlength=size * size).view(size, size).float()
        self.single = (self.counts.sum(0) + 1) / (self.counts.sum() + size)

    def loss(self, given: Tensor, after: Tensor, strength: float) -> Tensor:
        """Cross-entropy of tokens behind others; `strength` is the weight of the unigrams."""
        seen, total = self.counts[given, after], self.counts.sum(1)[given]
        return -((seen + strength * self.single[after]) / (total + strength)).log()

    def score(self, rows: Sequence[Tensor]) -> dict[str, dict[str, float]]:
        """Loss and accuracy of both; the strength is the best one for these very rows."""
        given, after = torch.cat([one[:-1] for one in rows]), torch.cat([one[1:] for one in rows])
        likeliest = self.counts.argmax(1)[given]
        return {
            "unigram": {
                "loss": round(-self.single[after].log().mean().item(), 4),
                "accuracy": round((after == self.single.argmax()).float().mean().item(), 4),
            },
            "bigram": {
                "loss": round(min(self.loss(given, after, s).mean().item() for s in STRENGTHS), 4),
                "accuracy": round((after == likeliest).float().mean().item(), 4),
            },
        }


@torch.inference_mode()
def predicted(model: GPT2LMHeadModel, row: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and correctness of every next token of a row."""
    logits = model(row[None, :-1]).logits[0]
    return functional.cross_entropy(logits, row[1:], reduction="none"), logits.argmax(1) == row[1:]


def held_out(model: GPT2LMHeadModel, rows: Sequence[Tensor]) -> dict[str, Any]:
    """Loss and accuracy over rows, over all and by position."""
    found = [predicted(model, row) for row in rows]
    losses, right = (torch.cat(each).double() for each in zip(*found, strict=True))
    places = torch.cat([torch.arange(len(row) - 1) for row in rows])
    return {
        "tokens": len(losses),
        "loss": round(losses.mean().item(), 4),
        "accuracy": round(right.mean().item(), 4),
        "loss_by_position": {
            f"{low}_to_{high - 1}": round(
                losses[(places >= low) & (places < high)].mean().item(), 4
            )
            for low, high in pairwise(PARTS)
        },
    }


def repeated(model: GPT2LMHeadModel, period: int, rows: int = 8) -> list[Tensor]:
    """Random tokens said twice behind the end-of-text token."""
    generator = torch.Generator().manual_seed(SEED + period)
    half = torch.randint(1, model.config.vocab_size, (rows, period), generator=generator)
    return [torch.cat((torch.zeros(1, dtype=torch.long), one, one)) for one in half]


def copied(model: GPT2LMHeadModel, period: int) -> float:
    """Top-1 accuracy on the second time of random tokens, its first token left out."""
    right = [predicted(model, row)[1][period + 1 :] for row in repeated(model, period)]
    return round(torch.cat(right).float().mean().item(), 4)


@torch.inference_mode()
def kinds(model: GPT2LMHeadModel, period: int = 64) -> dict[str, Tensor]:
    """Mean weight on what each kind of head looks at, (layer, head), on tokens said twice."""
    rows = torch.stack(repeated(model, period))
    mapped = copy.deepcopy(model)
    mapped.set_attn_implementation("eager")
    maps = torch.stack(mapped(rows, output_attentions=True).attentions)
    second = torch.arange(period + 1, 2 * period + 1)
    every = torch.arange(1, 2 * period + 1)

    def mean(queries: Tensor, keys: Tensor) -> Tensor:
        return maps[:, :, :, queries, keys].mean((1, 3))

    return {
        "induction": mean(second, second - period + 1),
        "duplicate": mean(second, second - period),
        "previous": mean(every, every - 1),
        "first": mean(every, torch.zeros_like(every)),
    }


def leaders(scores: Tensor) -> list[tuple[int, int]]:
    """Heads above 0.4, best first; the best one where none is."""
    width = scores.shape[1]
    order = scores.flatten().argsort(descending=True).tolist()
    count = max(1, int((scores > LEAST_SCORE).sum()))
    return [(one // width, one % width) for one in order[:count]]


def without(model: GPT2LMHeadModel, heads: Heads) -> GPT2LMHeadModel:
    """A copy with the rows of the output projection that read some heads set to zero."""
    model = copy.deepcopy(model)
    size = model.config.n_embd // model.config.n_head
    blocks: Any = model.transformer.h
    with torch.no_grad():
        for layer, head in heads:
            blocks[layer].attn.c_proj.weight[size * head : size * (head + 1)] = 0
    return model


def knocked_out(
    model: GPT2LMHeadModel, heads: Heads, rows: Sequence[Tensor], circuit: Heads = ()
) -> dict[str, dict[str, float]]:
    """Copying (halves of 64) and held-out loss: intact, without heads, without as many others.

    The others are drawn outside of the heads and of the circuit that they belong to.
    """
    rng = random.Random(SEED)
    every = [(i, j) for i in range(model.config.n_layer) for j in range(model.config.n_head)]
    others = [one for one in every if one not in heads and one not in circuit]

    def measure(gone: Heads) -> dict[str, float]:
        changed = without(model, gone)
        loss = torch.cat([predicted(changed, row)[0] for row in rows]).mean().item()
        return {"copied": copied(changed, 64), "loss": round(loss, 4)}

    drawn = [measure(rng.sample(others, len(heads))) for _ in range(DRAWS)]
    return {
        "intact": measure(()),
        "these_heads": measure(heads),
        "as_many_others_worst": {
            "copied": min(one["copied"] for one in drawn),
            "loss": max(one["loss"] for one in drawn),
        },
    }


def evaluate(source: Path) -> dict[str, Any]:
    """Measure a model folder on the standard library of the running Python.

    Parameters
    ----------
    source
        Folder with weights, config and tokenizer.

    Returns
    -------
    dict
        Measurement to numbers; losses in nats a token, accuracies top-1, 0 to 1.
    """
    model: Any = GPT2LMHeadModel.from_pretrained(source)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
    seen, unseen = sources(held_out=False), sources(held_out=True)
    learned, rows = windows(tokenizer, seen), windows(tokenizer, unseen)[::EVERY]
    few = random.Random(SEED).sample(rows, 8)
    found = kinds(model)
    circuit = [*leaders(found["induction"]), *leaders(found["previous"])]
    return {
        "corpus": {
            "python": platform.python_version(),
            "files": len(seen),
            "characters": sum(len(file.text) for file in seen),
            "tokens": sum(len(row) for row in learned),
            "held_out_files": len(unseen),
            "held_out_characters": sum(len(file.text) for file in unseen),
        },
        "held_out": {
            "windows": len(rows),
            **held_out(model, rows),
            **Pairs(learned, model.config.vocab_size).score(rows),
        },
        "repeated": {f"half_{period}": copied(model, period) for period in PERIODS},
        "heads": {
            kind: {
                f"L{layer}H{head}": round(scores[layer, head].item(), 3)
                for layer, head in leaders(scores)
            }
            for kind, scores in found.items()
        },
        "knocked_out": {
            kind: knocked_out(model, leaders(found[kind]), few, circuit)
            for kind in ("induction", "previous")
        },
    }


def main() -> None:
    """Read the command line and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, nargs="?", default=folder(), help="model folder")
    parser.add_argument("--out", type=Path, help="file to write; printed if not given")
    options = parser.parse_args()
    text = json.dumps(evaluate(options.source), indent=1) + "\n"
    if options.out:
        options.out.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()

"""Measure the bundled model on prompts it was not trained on; the model card's numbers as JSON.

Run by hand: ``python -P -m headscope.probes.bundled.evaluate [FOLDER] [--n 100] [--out FILE]``. The
forward pass is transformers' own, so the numbers do not depend on headscope's capture.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from headscope.probes.bundled import folder
from headscope.probes.prompts import tasks
from headscope.probes.prompts.tokens import EncodedTask, encode

SEED = 9_001
DEPTHS = 11
# Heads that attend to the word after an earlier occurrence: layer, head.
COPYING = ((3, 0), (3, 1), (3, 4), (3, 5), (3, 7))
DRAWS = 5
HALVES = (8, 16, 32, 64, 128, 256)


def answer_logits(model: LlamaForCausalLM, encoded: EncodedTask) -> list[list[Tensor]]:
    """Logits (vocab,) at every question of every prompt."""
    found = []
    with torch.inference_mode():
        for ids, questions in zip(encoded.ids, encoded.questions, strict=True):
            logits = model(torch.tensor([ids])).logits[0]
            found.append([logits[question.at] for question in questions])
    return found


def hits(logits: list[list[Tensor]], encoded: EncodedTask) -> list[list[bool]]:
    """Whether the most likely token of the whole vocabulary is an answer."""
    return [
        [
            int(row.argmax()) in question.answer_ids
            for row, question in zip(rows, asked, strict=True)
        ]
        for rows, asked in zip(logits, encoded.questions, strict=True)
    ]


def share(flags: list[list[bool]]) -> float:
    """Share of true flags."""
    flat = [flag for row in flags for flag in row]
    return round(sum(flat) / len(flat), 4)


def differences(logits: list[list[Tensor]], encoded: EncodedTask) -> list[float]:
    """Mean answer logit minus mean wrong logit, one a question."""
    return [
        float(row[list(question.answer_ids)].mean() - row[list(question.wrong_ids)].mean())
        for rows, asked in zip(logits, encoded.questions, strict=True)
        for row, question in zip(rows, asked, strict=True)
    ]


class Bench:
    """A model, its tokenizer, and how many prompts to draw a measurement."""

    def __init__(self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, n: int) -> None:
        self.model, self.tokenizer, self.n = model, tokenizer, n

    def ask(self, task: str, n: int | None = None, **options: Any) -> tuple[EncodedTask, Any]:
        """Encoded held-out prompts and the logits of their questions."""
        drawn = tasks.make(task, self.tokenizer, n or self.n, SEED, **options)
        encoded = encode(drawn, self.tokenizer)
        return encoded, answer_logits(self.model, encoded)

    def accuracy(self, task: str, n: int | None = None, **options: Any) -> float:
        """Share of questions whose most likely next token is an answer."""
        encoded, logits = self.ask(task, n, **options)
        return share(hits(logits, encoded))

    def induction(self) -> dict[str, float]:
        """Top-1 accuracy over the second half, by half length."""
        few = max(self.n // 5, 4)
        return {
            **{f"half_{size}": self.accuracy("induction", few, length=size) for size in HALVES},
            "half_64_any_word_with_repeats": self.accuracy(
                "induction", few, length=64, distinct=False
            ),
        }

    def recall(self, length: int, pairs: int) -> dict[str, Any]:
        """Accuracy of many-question recall, over all and by where the fact stands."""
        encoded, logits = self.ask("recall", length=length, pairs=pairs)
        right: dict[int, list[bool]] = {}
        flags = hits(logits, encoded)
        for row, asked in zip(flags, encoded.questions, strict=True):
            start = asked[0].at
            for flag, question in zip(row, asked, strict=True):
                right.setdefault(5 * question.evidence[0] // start, []).append(flag)
        depths = {f"fifth_{place + 1}": share([right[place]]) for place in sorted(right)}
        return {"all": share(flags), "by_depth": depths}

    def needle(self, length: int, span: int = 1) -> dict[str, Any]:
        """Accuracy of one fact in a haystack, over all and by depth."""
        few = max(self.n // 4, 4)
        depths = {
            f"{step / (DEPTHS - 1):.1f}": self.accuracy(
                "needle", few, length=length, depth=step / (DEPTHS - 1), span=span
            )
            for step in range(DEPTHS)
        }
        return {"all": round(sum(depths.values()) / DEPTHS, 4), "by_depth": depths}

    def indirect_object(self, task: str, **options: Any) -> dict[str, float]:
        """Logit difference IO minus S: share above 0, mean; and top-1 accuracy."""
        encoded, logits = self.ask(task, **options)
        found = differences(logits, encoded)
        return {
            "above_zero": share([[value > 0 for value in found]]),
            "mean": round(sum(found) / len(found), 3),
            "accuracy": share(hits(logits, encoded)),
        }

    def greater_than(self) -> dict[str, float]:
        """Summed probability of later years minus that of the others: mean and lowest."""
        encoded, logits = self.ask("greater_than")
        found = []
        for rows, asked in zip(logits, encoded.questions, strict=True):
            chance = rows[0].softmax(-1)
            answer, wrong = (list(ids) for ids in (asked[0].answer_ids, asked[0].wrong_ids))
            found.append(float(chance[answer].sum() - chance[wrong].sum()))
        return {"mean": round(sum(found) / len(found), 4), "lowest": round(min(found), 4)}


def without(source: Path, heads: Iterable[tuple[int, int]]) -> LlamaForCausalLM:
    """The model with the output columns of some (layer, head) set to zero."""
    model = LlamaForCausalLM.from_pretrained(source)
    size = model.model.layers[0].self_attn.head_dim
    with torch.no_grad():
        for layer, head in heads:
            output = model.model.layers[layer].self_attn.o_proj.weight
            output[:, size * head : size * (head + 1)] = 0
    return model


def knocked_out(source: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, dict[str, float]]:
    """Accuracy intact, without the copying heads, and without as many others (lowest of draws)."""
    rng = random.Random(SEED)
    every = [(layer, head) for layer in range(4) for head in range(8)]
    others = [head for head in every if head not in COPYING]

    def measure(heads: Iterable[tuple[int, int]]) -> dict[str, float]:
        bench = Bench(without(source, heads), tokenizer, 16)
        return {
            "induction": bench.accuracy("induction", 8, length=48),
            "recall": bench.accuracy("recall", 8, length=256, pairs=8),
            "needle": bench.accuracy("needle", length=256),
        }

    single = [measure([head]) for head in COPYING]
    drawn = [measure(rng.sample(others, len(COPYING))) for _ in range(DRAWS)]
    return {
        "intact": measure([]),
        "one_copying_head_lowest": {name: min(one[name] for one in single) for name in single[0]},
        "all_copying_heads": measure(COPYING),
        "as_many_other_heads_lowest": {name: min(one[name] for one in drawn) for name in drawn[0]},
    }


def evaluate(source: Path, n: int = 100) -> dict[str, Any]:
    """Measure a model folder on held-out prompts.

    Parameters
    ----------
    source
        Folder with weights, config and tokenizer.
    n
        Prompts a measurement (the long ones use fewer).

    Returns
    -------
    dict
        Task to numbers; accuracies are top-1 over the whole vocabulary, 0 to 1.
    """
    model = LlamaForCausalLM.from_pretrained(source)
    model.train(False)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
    bench = Bench(model, tokenizer, n)
    return {
        "induction": bench.induction(),
        "recall": {
            "length_128_pairs_8": bench.recall(128, 8),
            "length_512_pairs_8": bench.recall(512, 8),
            "length_512_pairs_32": bench.recall(512, 32),
            "length_1000_pairs_8": bench.recall(1000, 8),
        },
        "needle": {
            "length_512": bench.needle(512),
            "length_512_span_3": bench.needle(512, 3),
            "length_1000": bench.needle(1000),
        },
        "ioi": {
            "ABBA": bench.indirect_object("ioi", order="ABBA"),
            "BABA": bench.indirect_object("ioi", order="BABA"),
        },
        "story": bench.indirect_object("story"),
        "greater_than": bench.greater_than(),
        "brackets": {
            "length_8": bench.accuracy("brackets", length=8),
            "length_16": bench.accuracy("brackets", length=16),
            "length_20_depth_5": bench.accuracy("brackets", length=20, depth=5),
        },
        "knocked_out": knocked_out(source, tokenizer),
    }


def main() -> None:
    """Read the command line and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, nargs="?", default=folder(), help="model folder")
    parser.add_argument("--n", type=int, default=100, help="prompts a measurement")
    parser.add_argument("--out", type=Path, help="file to write; printed if not given")
    options = parser.parse_args()
    text = json.dumps(evaluate(options.source, options.n), indent=1) + "\n"
    if options.out:
        options.out.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()

"""Measure the story model on prompts it was not trained on."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from headscope.probes.prompts import tasks
from headscope.probes.prompts.tokens import EncodedTask, encode
from headscope_training.evaluation import Heads, draw_other_heads, lowest, to_json, without

SEED = 9_001
DEPTHS = 11
# Heads that attend to the word after an earlier occurrence: layer, head.
COPYING = ((3, 0), (3, 1), (3, 4), (3, 5), (3, 7))
DRAWS = 5
HALVES = (8, 16, 32, 64, 128, 256)


def answer_logits(model: LlamaForCausalLM, encoded: EncodedTask) -> list[list[Tensor]]:
    """Logits (vocab,) at every question of every prompt."""
    answers = []
    with torch.inference_mode():
        for ids, questions in zip(encoded.ids, encoded.questions, strict=True):
            logits = model(torch.tensor([ids])).logits[0]
            answers.append([logits[question.at] for question in questions])
    return answers


def hits(logits: list[list[Tensor]], encoded: EncodedTask) -> list[list[bool]]:
    """Whether the most likely token of the whole vocabulary is an answer."""
    return [
        [
            int(row.argmax()) in question.answer_ids
            for row, question in zip(rows, questions, strict=True)
        ]
        for rows, questions in zip(logits, encoded.questions, strict=True)
    ]


def share(flags: list[list[bool]]) -> float:
    """Share of true flags."""
    flat = [flag for row in flags for flag in row]
    return round(sum(flat) / len(flat), 4)


def logit_differences(logits: list[list[Tensor]], encoded: EncodedTask) -> list[float]:
    """Mean answer logit minus mean wrong logit, one a question."""
    return [
        float(row[list(question.answer_ids)].mean() - row[list(question.wrong_ids)].mean())
        for rows, questions in zip(logits, encoded.questions, strict=True)
        for row, question in zip(rows, questions, strict=True)
    ]


class Evaluation:
    """A model, its tokenizer, and how many prompts to draw a measurement (fewer long ones)."""

    def __init__(self, model: LlamaForCausalLM, tokenizer: Any, n: int) -> None:
        self.model, self.tokenizer, self.n = model, tokenizer, n

    def answers(
        self, task: str, n: int | None = None, **options: Any
    ) -> tuple[EncodedTask, list[list[Tensor]]]:
        """Encoded held-out prompts and the logits of their questions."""
        drawn = tasks.make(task, self.tokenizer, n or self.n, SEED, **options)
        encoded = encode(drawn, self.tokenizer)
        return encoded, answer_logits(self.model, encoded)

    def accuracy(self, task: str, n: int | None = None, **options: Any) -> float:
        """Share of questions whose most likely next token is an answer."""
        encoded, logits = self.answers(task, n, **options)
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
        encoded, logits = self.answers("recall", length=length, pairs=pairs)
        by_fifth: dict[int, list[bool]] = {}
        flags = hits(logits, encoded)
        for row, questions in zip(flags, encoded.questions, strict=True):
            start = questions[0].at
            for flag, question in zip(row, questions, strict=True):
                by_fifth.setdefault(5 * question.evidence[0] // start, []).append(flag)
        depths = {f"fifth_{fifth + 1}": share([by_fifth[fifth]]) for fifth in sorted(by_fifth)}
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
        encoded, logits = self.answers(task, **options)
        differences = logit_differences(logits, encoded)
        return {
            "above_zero": share([[value > 0 for value in differences]]),
            "mean": round(sum(differences) / len(differences), 3),
            "accuracy": share(hits(logits, encoded)),
        }

    def greater_than(self) -> dict[str, float]:
        """Summed probability of later years minus that of the others: mean and lowest."""
        encoded, logits = self.answers("greater_than")
        differences = []
        for rows, questions in zip(logits, encoded.questions, strict=True):
            chance, question = rows[0].softmax(-1), questions[0]
            answer, wrong = list(question.answer_ids), list(question.wrong_ids)
            differences.append(float(chance[answer].sum() - chance[wrong].sum()))
        mean = sum(differences) / len(differences)
        return {"mean": round(mean, 4), "lowest": round(min(differences), 4)}

    def copying(self) -> dict[str, float]:
        """Accuracy of the three tasks that the copying heads serve."""
        return {
            "induction": self.accuracy("induction", 8, length=48),
            "recall": self.accuracy("recall", 8, length=256, pairs=8),
            "needle": self.accuracy("needle", length=256),
        }


def knocked_out(model: LlamaForCausalLM, tokenizer: Any) -> dict[str, dict[str, float]]:
    """Accuracy intact, without the copying heads, and without as many others (lowest of draws)."""

    def measure(heads: Heads) -> dict[str, float]:
        return Evaluation(without(model, heads), tokenizer, 16).copying()

    others = draw_other_heads(model, COPYING, (), DRAWS, SEED)
    return {
        "intact": measure(()),
        "one_copying_head_lowest": lowest([measure([head]) for head in COPYING]),
        "all_copying_heads": measure(COPYING),
        "as_many_other_heads_lowest": lowest([measure(heads) for heads in others]),
    }


def card(source: Path, n: int = 100) -> str:
    """Measure a folder; accuracies are top-1 over the whole vocabulary, 0 to 1."""
    model = LlamaForCausalLM.from_pretrained(source)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
    evaluation = Evaluation(model, tokenizer, n)
    numbers = {
        "induction": evaluation.induction(),
        "recall": {
            f"length_{length}_pairs_{pairs}": evaluation.recall(length, pairs)
            for length, pairs in ((128, 8), (512, 8), (512, 32), (1000, 8))
        },
        "needle": {
            "length_512": evaluation.needle(512),
            "length_512_span_3": evaluation.needle(512, 3),
            "length_1000": evaluation.needle(1000),
        },
        "ioi": {
            order: evaluation.indirect_object("ioi", order=order) for order in ("ABBA", "BABA")
        },
        "story": evaluation.indirect_object("story"),
        "greater_than": evaluation.greater_than(),
        "brackets": {
            "length_8": evaluation.accuracy("brackets", length=8),
            "length_16": evaluation.accuracy("brackets", length=16),
            "length_20_depth_5": evaluation.accuracy("brackets", length=20, depth=5),
        },
        "knocked_out": knocked_out(model, tokenizer),
    }
    return to_json(numbers)

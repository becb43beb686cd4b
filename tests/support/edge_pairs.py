"""Pairs of random prompts, and what a model makes of them with edges removed."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from headscope.analyses._interventions.edge_patching import patching
from headscope.probes.prompts.tokens import EncodedQuestion, EncodedTask


def pairs(vocabulary: int, count: int = 3, length: int = 7, seed: int = 0) -> EncodedTask:
    """Random tokens, some others when corrupted; the next token is asked for at two places."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(2, vocabulary, (count, length))
    other = np.where(generator.random(ids.shape) < 0.5, ids, (ids + 3) % vocabulary)
    questions = []
    for _ in range(count):
        answers = generator.integers(2, vocabulary, (2, 2, 1))
        places = zip((length - 3, length - 1), answers.tolist(), strict=True)
        questions.append(
            tuple(EncodedQuestion(at, tuple(one), tuple(wrong), ()) for at, (one, wrong) in places)
        )
    return EncodedTask(
        "pairs", "logit_difference", tuple(map(tuple, ids.tolist())),
        tuple(map(tuple, other.tolist())), tuple(questions), tuple({} for _ in range(count)),
    )  # fmt: skip


def all_logits(model: Any, task: EncodedTask, removed: np.ndarray) -> Tensor:
    """Logits at the asked positions (prompt, variant, asked, vocab)."""
    found: list[Any] = [None] * len(task)
    with patching(model, task) as split:
        for prompts, run in split.batches():
            out = run.logits(torch.from_numpy(removed), 0)
            for row, prompt in enumerate(prompts):
                found[prompt] = out.unflatten(0, (len(removed), -1))[:, row]
    return torch.stack(found)

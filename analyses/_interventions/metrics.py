"""Metrics of the answers of a task: their names, their units, and the scores of logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headscope.kernels.errors import InvalidInput, NotApplicable

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor

    from headscope.probes.prompts.tokens import EncodedQuestion

    Questions = Sequence[Sequence[EncodedQuestion]]

UNITS = {
    "logit_difference": "logits",
    "probability_difference": "probability",
    "log_probability": "nats",
    "accuracy": "share of answers",
}
# What an analysis lets choose; ``task`` is the task's own.
METRICS = ("task", *UNITS)


def differentiable(metric: str) -> str:
    """Return the metric that gradients follow: accuracy has none, so the log-probability.

    >>> differentiable("accuracy"), differentiable("logit_difference")
    ('log_probability', 'logit_difference')
    """
    return "log_probability" if metric == "accuracy" else metric


@dataclass(frozen=True)
class AnswerMetric:
    """A metric of the answers to the questions of every prompt, as a sweep calls it."""

    name: str
    questions: Questions

    def __call__(
        self, logits: Tensor, prompts: Sequence[int], positions: Sequence[Sequence[int]]
    ) -> Float[Tensor, " batch"]:
        """Score the logits at some positions of some prompts, one number a row."""
        return score(logits, [self.questions[prompt] for prompt in prompts], self.name, positions)


def score(
    logits: Float[Tensor, "batch position vocab"],
    questions: Questions,
    metric: str,
    positions: Sequence[Sequence[int]] | None = None,
) -> Float[Tensor, " batch"]:
    """Score the answers of a task, one float32 number per prompt: the mean over its questions.

    Parameters
    ----------
    questions
        Per prompt, its questions in token positions (`headscope.probes.prompts.tokens.encode`).
    metric
        ``logit_difference``: mean logit of the answers minus mean logit of the wrong answers.
        ``probability_difference``: sum of the probabilities, likewise, between -1 and 1.
        ``log_probability``: log of the summed probability of the answers. ``accuracy``: 1 where the
        most probable of all tokens is an answer, else 0; it has no gradient.
    positions
        Which positions the logits are of, row by row; all, from the first on, without it.
    """
    import torch

    if metric not in UNITS:
        raise InvalidInput(f"metric: no {metric!r}; choose one of {', '.join(UNITS)}")
    if not all(questions):
        raise NotApplicable("task: a prompt has no question, so it has no metric")
    flat = [
        (row, question) for row, row_questions in enumerate(questions) for question in row_questions
    ]
    compares = metric in ("logit_difference", "probability_difference")
    if compares and not all(question.wrong_ids for _, question in flat):
        raise NotApplicable(
            f"wrong: the metric {metric} needs wrong answers; use metric='accuracy'"
        )
    device = logits.device
    owner = torch.tensor([row for row, _ in flat], device=device)
    at = [
        question.at if positions is None else positions[row].index(question.at)
        for row, question in flat
    ]
    index = owner, torch.tensor(at, device=device)
    right, is_right = _padded([question.answer_ids for _, question in flat], device)
    if metric == "accuracy":
        # Of all rows, which spares a copy of those that are asked.
        hits = (logits.argmax(-1)[index][:, None] == right) & is_right
        values = hits.any(-1).float()
    elif metric == "log_probability":
        logs = logits[index].float().log_softmax(-1).gather(1, right)
        values = logs.masked_fill(~is_right, -torch.inf).logsumexp(-1)
    else:
        wrong, is_wrong = _padded([question.wrong_ids for _, question in flat], device)
        summed = metric == "probability_difference"
        source = logits[index].float()
        source = source.softmax(-1) if summed else source
        values = _gathered(source, right, is_right, mean=not summed)
        values = values - _gathered(source, wrong, is_wrong, mean=not summed)
    total = values.new_zeros(len(questions)).index_add(0, owner, values)
    return total / torch.tensor([len(row_questions) for row_questions in questions], device=device)


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids of one width, and which of them are real."""
    import torch

    width = max(map(len, rows))
    padded = torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows], device=device)
    return padded.clamp_min(0), padded >= 0


def _gathered(source: Tensor, index: Tensor, real: Tensor, *, mean: bool) -> Tensor:
    """Sum, or average, what real token ids have."""
    total = source.gather(1, index).masked_fill(~real, 0.0).sum(-1)
    return total / real.sum(-1) if mean else total

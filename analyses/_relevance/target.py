"""The answer to be explained: its logit at one position of one text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from headscope.kernels.errors import NotApplicable
from headscope.probes.attention.forward import logits as model_logits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from headscope.probes.models.model import Model
    from headscope.probes.prompts.tokens import EncodedQuestion, EncodedTask


@dataclass(frozen=True)
class Target:
    """The mean logit of the answers at position ``at``, less that of the wrong ones if any.

    Linear in the logits, so that methods that conserve relevance can start from it.
    """

    ids: tuple[int, ...]
    at: int
    answer_ids: tuple[int, ...]
    wrong_ids: tuple[int, ...] = ()

    def score(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, " batch"]:
        """Score logits at the position ``at``, in logits."""
        right = logits[:, list(self.answer_ids)].float().mean(-1)
        if not self.wrong_ids:
            return right
        return right - logits[:, list(self.wrong_ids)].float().mean(-1)

    @property
    def units(self) -> str:
        """Units of the score."""
        return "logit difference" if self.wrong_ids else "logit"

    @torch.no_grad()
    def scores(self, model: Model, rows: Int[Tensor, "batch token"]) -> Float[Tensor, " batch"]:
        """Score other texts of the same length."""
        positions = torch.full((len(rows), 1), self.at)
        return self.score(model_logits(model, rows, (), positions)[:, 0])


def of_question(ids: Sequence[int], question: EncodedQuestion) -> Target:
    """Return the target of a task's question; what stands after it is left out of the text."""
    return Target(
        tuple(ids[: question.at + 1]), question.at, question.answer_ids, question.wrong_ids
    )


def of_task(encoded: EncodedTask) -> list[Target]:
    """Return the target of the last question of every prompt of a task."""
    if not all(encoded.questions):
        raise NotApplicable("task: a prompt has no question, so nothing to explain")
    return [of_question(ids, questions[-1])
            for ids, questions in zip(encoded.ids, encoded.questions, strict=True)]  # fmt: skip


def predicted(model: Model, ids: Sequence[int]) -> Target:
    """Return the token that the model predicts after a text as the target."""
    model.check_predicts()
    with torch.no_grad():
        last = model_logits(model, torch.tensor([list(ids)]), (), torch.tensor([[len(ids) - 1]]))
    return Target(tuple(ids), len(ids) - 1, (int(last[0, 0].argmax()),))

"""One fact among more and more others: attention on it, and the effect of hiding a fact."""

from collections.abc import Sequence

import numpy as np
import torch

from headscope.analyses._stats.bootstrap import Array
from headscope.analyses.token_groups._segment_mass import masses
from headscope.probes.attention.forward import logits
from headscope.probes.interventions import KnockOut
from headscope.probes.interventions.base import Edit
from headscope.probes.models.model import Model
from headscope.probes.prompts.few_shot import SHOT
from headscope.probes.prompts.reading import read
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tokens import EncodedTask

Head = tuple[int, int]

GROUPS = ("asked fact", "other facts", "question", "elsewhere")


class Facts:
    """Prompts of as many facts each, one of which is asked for at the end.

    Behind shots (solved examples) the asked fact stands against them, each a whole.
    """

    def __init__(self, model: Model, task: Task) -> None:
        prompts = read(model, task)
        assert prompts.encoded is not None
        self.model, self.ids = model, prompts.ids
        self.encoded: EncodedTask = prompts.encoded
        # What competes for the asking token, and which of it is the asked fact, by prompt.
        self.units: list[list[list[int]]] = []
        self.asked_facts: list[int] = []
        for spans, questions in zip(self.encoded.spans, self.encoded.questions, strict=True):
            index = spans["value"].index(questions[0].evidence)
            facts = [
                [*key, *value] for key, value in zip(spans["key"], spans["value"], strict=True)
            ]
            shots = [list(shot) for shot in spans.get(SHOT, ())]
            self.units.append([facts[index], *shots] if shots else facts)
            self.asked_facts.append(0 if shots else index)

    def masses(self, row: int) -> Array:
        """Return the asking token's mass on each fact, its question, elsewhere (layer, head, …)."""
        spans, ids = self.encoded.spans[row], self.ids[row]
        at = self.encoded.questions[row][0].at
        count = len(self.units[row])
        numbers = np.full(len(ids), count + 1)
        # The word before the asked key belongs to the question.
        numbers[spans["query"][0][0] - 1 : at + 1] = count
        for number, unit in enumerate(self.units[row]):
            numbers[unit] = number
        return np.asarray(masses(self.model, ids, numbers, count + 2, [np.array([at])])[:, :, 0])

    def per_token(self, row: int, masses: Array) -> Array:
        """Return masses as if every unit had as many tokens as the asked fact."""
        sizes = np.array([len(unit) for unit in self.units[row]])
        return np.asarray(masses * np.append(sizes[self.asked_facts[row]] / sizes, (1, 1)))

    def answer(self, row: int, edits: Sequence[Edit] = ()) -> tuple[float, float]:
        """Return whether the likeliest next word is the answer, and −log p of the answer."""
        question = self.encoded.questions[row][0]
        with torch.no_grad():
            output = logits(self.model, torch.tensor([list(self.ids[row])]), edits)
        chances = output[0, question.at].double().log_softmax(-1)
        right = list(question.answer_ids)
        return float(int(chances.argmax()) in right), float(-chances[right].logsumexp(0))

    def hidden(self, row: int, number: int, heads: Sequence[Head]) -> tuple[Edit, ...]:
        """Hide a fact, or a shot, from all that comes after it, in some heads."""
        positions = self.units[row][number]
        after = tuple(range(positions[-1] + 1, len(self.ids[row])))
        return (KnockOut(heads=tuple(heads), keys=tuple(positions), queries=after),)


def split(masses: Array, index: int) -> tuple[Array, Array]:
    """Return the mass on the asked fact (layer, head) and on each other one (layer, head, fact)."""
    facts = masses[..., :-2]
    return facts[..., index], np.delete(facts, index, axis=-1)


def entropy(masses: Array) -> Array:
    """Return the entropy of the mass over facts, as a share of its largest value.

    >>> entropy(np.array([0.2, 0.2])).round(6).tolist(), entropy(np.array([0.4, 0.0])).tolist()
    (1.0, 0.0)
    """
    total = masses.sum(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = masses / total
        terms = np.where(shares > 0, -shares * np.log(shares), 0.0)
    share = np.clip(terms.sum(-1) / np.log(masses.shape[-1]), 0, 1)
    return np.asarray(np.where(total[..., 0] > 0, share, np.nan))

"""How many facts a model holds: the largest number at which it recalls one, before it is analysed.

In natural register the task recall states as many facts as the model can hold, which is found on
prompts of seeds that no analysis draws. In plain register, of the bundled models, it states 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from headscope.analyses._interventions.ablation import evaluate
from headscope.analyses._interventions.causal_check import SOLVED
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import amount
from headscope.probes.prompts import tasks

if TYPE_CHECKING:
    import xarray as xr

    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

TASK = "recall"
# Numbers of facts that are tried, in order up to the first that fails, on as many prompts each.
COUNTS, PROMPTS = (2, 3, 4, 6, 8), 32
# Added to the seed of an analysis.
OTHER_SEED = 10_000

# (accuracy, lower, upper end of its 95 % interval).
Share = tuple[float, float, float]
_FOUND: WeakKeyDictionary[Any, dict[Any, Capacity]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Capacity:
    """Accuracy by number of facts, and the largest number that is held, 0 where none is."""

    accuracy: dict[int, Share]
    pairs: int

    def __str__(self) -> str:
        """Format as one sentence."""
        count = self.pairs or COUNTS[0]
        share, lower, upper = self.accuracy[count]
        answers = (
            f"it answers {amount(share)} ({amount(lower)} to {amount(upper)}) of {PROMPTS} "
            f"questions about {count}, chance {amount(1 / count)}"
        )
        if not self.pairs:
            unknown = "what stands on recall is not conclusive"
            return f"The model is not shown to hold facts of recall: {answers}; {unknown}."
        return f"The model holds {count} facts of recall: {answers}."

    def state(self, result: xr.Dataset) -> None:
        """Write it into a result, as the first sentence of its note."""
        result.attrs |= {
            "recall_pairs": self.pairs or COUNTS[0],
            "recall_calibration": {str(count): share for count, share in self.accuracy.items()},
            "recall_bound": f"{SOLVED:g}, and the lower end of the 95 % interval above chance, "
            f"which is one of the stated facts; {PROMPTS} prompts, seed + {OTHER_SEED}",
            "note": f"{self} {result.attrs.get('note', '')}".strip(),
        }


def draw(model: Model, n: int, seed: int) -> tuple[Task, Capacity | None]:
    """Draw the task recall with as many facts as a model holds; without answers, as it is drawn."""
    task = tasks.make(TASK, model.tokenizer, n, seed, vocab_size=model.vocabulary or None)
    if task.register == "plain" or not _predicts(model):
        return task, None
    capacity = find(model, seed, task.register)
    pairs = capacity.pairs or COUNTS[0]
    return tasks.make(TASK, model.tokenizer, n, seed, register=task.register, pairs=pairs), capacity


def find(model: Model, seed: int, register: str) -> Capacity:
    """Find the largest number of facts that a model holds, once for a model and seed.

    A number is held where the accuracy is at least `SOLVED` and its interval (Wilson) lies above
    chance, that of naming any stated fact.
    """
    from scipy.stats import binomtest

    capacities = _FOUND.setdefault(model.module, {})
    key = (seed, register, model.bos)
    if key not in capacities:
        accuracy, most = {}, 0
        for pairs in COUNTS:
            sample = tasks.make(
                TASK, model.tokenizer, PROMPTS, seed + OTHER_SEED, register=register,
                pairs=pairs, queries=1,
            )  # fmt: skip
            right = evaluate(model, sample, metric="accuracy")
            ends = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
            share = float(right.mean())
            accuracy[pairs] = (share, float(ends.low), float(ends.high))
            if share < SOLVED or ends.low <= 1 / pairs:
                break
            most = pairs
        capacities[key] = Capacity(accuracy, most)
    return capacities[key]


def _predicts(model: Model) -> bool:
    try:
        model.check_predicts()
    except NotApplicable:
        return False
    return True

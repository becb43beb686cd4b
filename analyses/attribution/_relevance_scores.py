"""What is measured of methods of token relevance on a task, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import and_

import numpy as np

from headscope.analyses._runtime.verdict import Verdict
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses._stats.effect_size import LEAST_PROMPTS, exceeds_zero
from headscope.kernels.formatting import amount

RANDOM, REPLACED = "random order", "token replacement"
ORDERS = 3
"""Orders at random whose areas are averaged."""
RAW = "raw_attention"


@dataclass
class Measured:
    """What was measured on one task: areas and correlations by method, one number a prompt."""

    deletion: dict[str, list[float]] = field(default_factory=dict)
    insertion: dict[str, list[float]] = field(default_factory=dict)
    agreement: dict[str, list[float]] = field(default_factory=dict)
    whole: list[float] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def gap(self, name: str) -> Array:
        """Return insertion less deletion of every prompt, in logits."""
        return np.asarray(np.subtract(self.insertion[name], self.deletion[name]))


def table(
    measured: Mapping[str, Measured], part: str, rows: Sequence[str], *, share: bool
) -> Array:
    """Collect a number of all prompts, tasks and methods (prompt, task, method), NaN where none."""
    count = max(len(scores.whole) for scores in measured.values())
    table = np.full((count, len(measured), len(rows)), np.nan)
    for at, scores in enumerate(measured.values()):
        total = float(np.mean(scores.whole)) if share else 1.0
        for column, name in enumerate(rows):
            values = getattr(scores, part).get(name)
            if values is not None and total > 0:
                table[: len(values), at, column] = np.asarray(values) / total
    return table


def verdict(measured: Mapping[str, Measured], titles: Mapping[str, str]) -> Verdict:
    """Say which methods beat an order at random, and whether raw attention does."""
    return reduce(and_, (_of_task(name, scores, titles) for name, scores in measured.items()))


def _of_task(name: str, scores: Measured, titles: Mapping[str, str]) -> Verdict:
    methods = [method for method in titles if method in scores.deletion]
    above = np.stack([scores.gap(method) - scores.gap(RANDOM) for method in methods], axis=1)
    total = float(np.mean(scores.whole))
    if len(above) < LEAST_PROMPTS:
        return Verdict(
            "too_few", f"{name}: {len(above)} prompts are too few to tell methods from chance."
        )
    if not exceeds_zero(np.asarray(scores.whole)[:, None])[0]:
        return Verdict(
            "too_few", f"{name}: the model does not do it, so there is nothing to follow."
        )
    better = exceeds_zero(above)
    order = np.argsort(-above.mean(0))
    gaps = {
        method: amount(float(scores.gap(method).mean()) / total)
        for method in (*methods, RANDOM, REPLACED)
    }
    best = ", ".join(f"{titles[methods[at]]} {gaps[methods[at]]}" for at in order[:3])
    worse = [titles[methods[at]] for at in order if not better[at]]
    text = (
        f"{name}: insertion − deletion is largest by {best}; by token replacement "
        f"{gaps[REPLACED]}, by an order at random {gaps[RANDOM]}."
    )
    if worse:
        text += f" Not distinguishable from a random order: {', '.join(worse)}."
    if RAW in methods and not better[methods.index(RAW)]:
        return Verdict(
            "disagreement", f"{text} Raw attention does not say which tokens the answer comes from."
        )
    return Verdict("supported", text)

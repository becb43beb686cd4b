"""Scores of every method of token relevance on the prompts of a task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headscope.analyses import _relevance as registry
from headscope.analyses._relevance import target as targets
from headscope.analyses._relevance.perturbation import areas, order_of, perturb
from headscope.analyses._relevance.trace import Trace
from headscope.analyses._runtime import progress
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses._stats.rank_correlation import ranked
from headscope.probes.models.model import Model
from headscope.probes.prompts.tokens import EncodedTask

RANDOM, REPLACED = "random order", "token replacement"
ORDERS = 3
"""Orders at random whose areas are averaged."""


@dataclass
class Measured:
    """Measurements on one task: areas and correlations by method, one number a prompt."""

    deletion: dict[str, list[float]] = field(default_factory=dict)
    insertion: dict[str, list[float]] = field(default_factory=dict)
    agreement: dict[str, list[float]] = field(default_factory=dict)
    whole: list[float] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def gap(self, name: str) -> Array:
        """Return insertion less deletion of every prompt, in logits."""
        return np.asarray(np.subtract(self.insertion[name], self.deletion[name]))


@dataclass
class TokenCounter:
    """Counter of the tokens that are done, of all prompts."""

    tokens: int
    done: int = 0

    def add(self, count: int) -> None:
        """Report some more tokens; how often they ran follows from the methods."""
        self.done += count
        progress.completed(self.done / self.tokens)


def measure(
    model: Model,
    encoded: EncodedTask,
    names: Sequence[str],
    draws: int,
    steps: int,
    seed: int,
    parts: TokenCounter,
) -> Measured:
    """Measure every method on the prompts of a task; one that refuses any of them is left out."""
    generator = np.random.default_rng(seed)
    pool = [token for ids in encoded.ids for token in ids]
    scores = Measured()
    shared: dict[Callable[..., Any], Any] = {}
    for ids, target in zip(encoded.ids, targets.of_task(encoded), strict=True):
        perturbation = perturb(model, target, pool, draws, generator)
        free = perturbation.free
        # Other draws than those of the curves, so that chance in them is not shared.
        effect = perturb(model, target, pool, draws, generator).effect()
        accepting = [name for name in names if name not in scores.refused]
        relevances, refused = registry.measure(Trace(model, target, shared), accepting)
        scores.refused |= refused
        orders = {name: order_of(values, free) for name, values in relevances.items()}
        orders[REPLACED] = order_of(effect, free)
        positions = np.flatnonzero(free)
        shuffled = {f"{RANDOM} {at}": generator.permutation(positions) for at in range(ORDERS)}
        by_name = areas(perturbation, orders | shuffled, steps)
        intact, empty = perturbation.ends()
        scores.whole.append(intact - empty)
        by_name[RANDOM] = tuple(np.mean([by_name.pop(name) for name in shuffled], axis=0).tolist())
        for name, (deleted, inserted) in by_name.items():
            scores.deletion.setdefault(name, []).append(deleted)
            scores.insertion.setdefault(name, []).append(inserted)
            relevance = relevances.get(name, effect)
            rho = ranked(relevance[free], effect[free]) if name in relevances else np.nan
            scores.agreement.setdefault(name, []).append(rho)
        parts.add(len(ids))
    for part in (scores.deletion, scores.insertion, scores.agreement):
        for name in scores.refused:
            part.pop(name, None)
    return scores


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

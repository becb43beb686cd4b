"""Orders in which heads, or whole KV groups, are ablated, and the smallest set that is left."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from headscope.analyses._interventions.ablation import Head, ablated_metric, encode_task
from headscope.analyses._runtime.progress import steps
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tokens import EncodedTask

Unit = tuple[Head, ...]


def units(model: Model, *, grouped: bool = False) -> list[Unit]:
    """List what is ablated as one: each head, or all query heads that share a KV head."""
    size = model.heads // model.kv_heads if grouped else 1
    return [
        tuple((layer, head) for head in range(start, start + size))
        for layer in model.geometry.attending
        for start in range(0, model.heads, size)
    ]


def flat(some: Sequence[Unit]) -> list[Head]:
    """List the heads of units."""
    return [head for unit in some for head in unit]


def greedy(
    model: Model,
    task: Task | EncodedTask,
    metric: str,
    pool: Sequence[Unit],
    share: float,
    values: Any = None,
) -> tuple[list[Unit], list[Unit]]:
    """Order units by what the task loses without them, ranked anew as others are gone.

    A share of all units, one at least, goes between two rankings. Returned are the greedy order,
    the dispensable first, and the order of the first ranking (one shot).
    """
    together = max(1, round(share * len(pool)))
    left = list(pool)
    order: list[Unit] = []
    first: list[Unit] = []
    encoded = encode_task(model, task)
    with steps(len(pool)) as step:
        while left:
            sets = [[*flat(order), *unit] for unit in left]
            scores = ablated_metric(model, encoded, metric, sets, values).mean(0)
            ranked = [left[at] for at in np.argsort(-scores, kind="stable")]
            first = first or ranked
            order += ranked[:together]
            left = [unit for unit in left if unit not in set(ranked[:together])]
            step(together)
    return order, first


def prefixes(order: Sequence[Unit], counts: Sequence[int]) -> list[list[Head]]:
    """List the heads that are gone when the first ``counts`` units of an order are."""
    return [flat(order[:count]) for count in counts]


def smallest(
    model: Model,
    task: Task | EncodedTask,
    metric: str,
    order: Sequence[Unit],
    least: float,
    values: Any = None,
) -> list[Unit] | None:
    """Return the units of the smallest set along an order whose mean metric is at least ``least``.

    The longest beginning of the order that may go is ablated; then every other unit, in order,
    that can still go alone. What is left cannot lose one more. None where the metric of the whole
    model is below ``least``.
    """
    encoded = encode_task(model, task)
    kept: list[Unit] = []
    with steps(2) as step:
        sets = prefixes(order, range(len(order) + 1))
        scores = ablated_metric(model, encoded, metric, sets, values).mean(0)
        step()
        fits = np.flatnonzero(scores >= least)
        if not len(fits) or scores[0] < least:
            return None
        gone, rest = list(order[: fits[-1]]), order[fits[-1] :]
        with steps(len(rest)) as inner:
            for unit in rest:
                sets = [flat([*gone, unit])]
                score = ablated_metric(model, encoded, metric, sets, values).mean()
                (gone if score >= least else kept).append(unit)
                inner()
    return kept


def spaced(total: int, points: int) -> list[int]:
    """Return up to ``points`` + 1 numbers from 0 to ``total``, both among them.

    >>> spaced(32, 4), spaced(3, 8)
    ([0, 8, 16, 24, 32], [0, 1, 2, 3])
    """
    return sorted({math.floor(at * total / points + 0.5) for at in range(points + 1)})

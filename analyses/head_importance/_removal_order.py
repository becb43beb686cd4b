"""Orders in which heads, or whole KV groups, are ablated, and the smallest set that is left."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from headscope.analyses._interventions.ablation import ablated_metric, encode_task
from headscope.analyses._interventions.head_sets import Head
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tokens import EncodedTask

Unit = tuple[Head, ...]
# Counts along an order between which the smallest set is searched, where not all are measured.
COARSE = 12


def units(model: Model, *, grouped: bool = False) -> list[Unit]:
    """List what is ablated as one: each head, or all query heads that share a KV head."""
    size = model.heads // model.kv_heads if grouped else 1
    return [
        tuple((layer, head) for head in range(start, start + size))
        for layer in model.geometry.attending
        for start in range(0, model.heads, size)
    ]


def flat(groups: Sequence[Unit]) -> list[Head]:
    """List the heads of units."""
    return [head for unit in groups for head in unit]


def greedy(
    model: Model,
    task: Task | EncodedTask,
    metric: str,
    pool: Sequence[Unit],
    share: float,
    values: Any = None,
    extra: int | None = None,
) -> tuple[list[Unit], list[Unit]]:
    """Order units by what the task loses without them, ranked anew as others are gone.

    A share of all units, one at least, goes between two rankings. With ``extra``, a ranking is of
    as many units as go and so many more, the first in the pool that are left; else of all. Returned
    are the greedy order, the dispensable first, and the order of the first ranking (one shot), with
    units that it leaves out behind, as they are in the pool.
    """
    together = max(1, round(share * len(pool)))
    most = len(pool) if extra is None else together + extra
    remaining = list(pool)
    order: list[Unit] = []
    first: list[Unit] = []
    encoded = encode_task(model, task)
    while remaining:
        sets = [[*flat(order), *unit] for unit in remaining[:most]]
        scores = ablated_metric(model, encoded, metric, sets, values).mean(0)
        ranked = [remaining[at] for at in np.argsort(-scores, kind="stable")]
        first = first or [*ranked, *remaining[most:]]
        order += ranked[:together]
        remaining = [unit for unit in remaining if unit not in set(ranked[:together])]
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
    tries: int | None = None,
) -> list[Unit] | None:
    """Return the units of the smallest set along an order whose mean metric is at least ``least``.

    The longest beginning of the order that may go is ablated; then every other unit, in order,
    that can still go alone. What is left cannot lose one more. None where the metric of the whole
    model is below ``least``. With ``tries``, so many units alone are tried, and the beginning is
    searched at a few counts and between two of them.
    """
    encoded = encode_task(model, task)
    kept: list[Unit] = []

    def longest(counts: Sequence[int]) -> int | None:
        sets = prefixes(order, counts)
        fits = ablated_metric(model, encoded, metric, sets, values).mean(0) >= least
        return max(np.asarray(counts)[fits].tolist()) if fits[0] else None

    every = range(len(order) + 1)
    length = longest(every if tries is None else spaced(len(order), COARSE))
    if length is None:
        return None
    if tries is not None:
        length = longest(every[length : length + math.ceil(len(order) / COARSE)]) or length
    gone, rest = list(order[:length]), order[length:]
    for unit in rest[:tries]:
        sets = [flat([*gone, unit])]
        score = ablated_metric(model, encoded, metric, sets, values).mean()
        (gone if score >= least else kept).append(unit)
    return kept if tries is None else [*kept, *rest[tries:]]


def spaced(total: int, points: int) -> list[int]:
    """Return up to ``points`` + 1 numbers from 0 to ``total``, both among them.

    >>> spaced(32, 4), spaced(3, 8)
    ([0, 8, 16, 24, 32], [0, 1, 2, 3])
    """
    return sorted({math.floor(at * total / points + 0.5) for at in range(points + 1)})

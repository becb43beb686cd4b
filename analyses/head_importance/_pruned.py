"""What is left of a task along orders of ablation, in single layers, and in the smallest set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from headscope.analyses._interventions import head_sets
from headscope.analyses._interventions.ablation import ablated_metric, evaluate
from headscope.analyses._interventions.head_sets import Head
from headscope.analyses._interventions.metrics import differentiable
from headscope.analyses._runtime.results import Results
from headscope.analyses._stats.bootstrap import Array, bootstrap, crossed, draws, percentiles
from headscope.analyses.head_importance._removal_order import Unit, flat, prefixes, smallest
from headscope.probes.models.model import Model
from headscope.probes.prompts.tokens import EncodedTask

SOURCE = "Michel et al. 1905.10650"
Interval = tuple[float, float, float]
MISSING: Interval = (float("nan"), float("nan"), float("nan"))


class Smallest(NamedTuple):
    """The smallest set that keeps a share of a metric, None where nothing can be kept.

    What it and random sets of its size keep on other prompts is a share with its interval.
    """

    heads: list[Head] | None
    share: Interval
    random: Interval

    def add(self, results: Results, keep: float, work: Pruned) -> None:
        """Add the variables of the set."""
        tried = "no" if work.tries is None else f"none of {work.tries} that were tried"
        rule = f"greedy order, at least {keep:g} of the metric; {tried} head of it can go as well"
        halves = (
            f"set found on {len(work.ranking)} prompts, measured on {len(work.measuring)} others"
        )
        mask = np.full((work.model.layers, work.model.heads), np.nan)
        size = float("nan")
        if self.heads is not None:
            mask = head_sets.masks(work.model, [self.heads])[0].numpy().astype(float)
            size = float(len(self.heads))
        results.add_all(
            ("kept", ("layer", "head"), mask, "In the smallest set", ("1 kept", "sequential", 0, 1),
             rule),
            ("size", (), size, "Heads in the smallest set", ("heads", "sequential", 0), rule),
        )  # fmt: skip
        results.add_interval(
            "kept_share", (), self.share, "Share of the metric that the smallest set keeps",
            "share", "diverging", convention=halves,
        )  # fmt: skip
        results.add_interval(
            "random_share", (), self.random, "Share that random sets of its size keep", "share",
            "diverging", convention=f"{work.orders} sets; {halves}",
        )  # fmt: skip


@dataclass(frozen=True)
class Pruned:
    """Data shared by all curves of one run."""

    model: Model
    task: EncodedTask
    metric: str
    values: Any
    orders: int
    seed: int
    tries: int | None = None

    @property
    def smooth(self) -> str:
        """Metric that heads are ranked by: the accuracy has too many ties."""
        return differentiable(self.metric)

    @property
    def ranking(self) -> EncodedTask:
        """Every second prompt, for finding orders and sets."""
        return self.task.part(range(0, len(self.task), 2))

    @property
    def measuring(self) -> EncodedTask:
        """The prompts that nothing was found on."""
        return self.task.part(range(1, len(self.task), 2))

    def curves(
        self, named: dict[str, list[Unit]], pool: Sequence[Unit], counts: Sequence[int]
    ) -> tuple[Array, Array, Array]:
        """Return the metric along orders and along random ones (order, removed), with ends."""
        generator = np.random.default_rng(self.seed)
        random = [[pool[at] for at in generator.permutation(len(pool))] for _ in range(self.orders)]
        scores = []
        for order in (*named.values(), *random):
            scores.append(self._measured(prefixes(order, counts)))
        rows = [np.stack(bootstrap(score, seed=self.seed)) for score in scores[: len(named)]]
        random_scores = np.stack(scores[len(named) :])
        ends = [crossed(random_scores[:, :, at], seed=self.seed) for at in range(len(counts))]
        mean, lower, upper = np.stack([*rows, np.array(ends).T], axis=1)
        return mean, lower, upper

    def layers(self, alone: Bool[Tensor, "layer head"]) -> tuple[Array, Array]:
        """Return what is lost with one head a layer, and with none (prompt, layer[, head]).

        ``alone`` are the heads that are left alone in turn.
        """
        model, width = self.model, range(self.model.heads)
        clean = evaluate(model, self.task, (), self.metric)[:, None]
        only = np.full((len(self.task), model.layers, model.heads), np.nan)
        without_all = np.full((len(self.task), model.layers), np.nan)
        for layer in model.geometry.attending:
            heads = alone[layer].nonzero().flatten().tolist()
            sets = [[(layer, other) for other in width if other != head] for head in heads]
            sets.append([(layer, head) for head in width])
            lost = clean - ablated_metric(model, self.task, self.metric, sets, self.values)
            only[:, layer, heads], without_all[:, layer] = lost[:, :-1], lost[:, -1]
        return only, without_all

    def smallest(self, order: Sequence[Unit], pool: Sequence[Unit], keep: float) -> Smallest:
        """Find the smallest set along the greedy order, and what it keeps on other prompts."""
        clean = evaluate(self.model, self.ranking, (), self.metric).mean()
        units, share, random = None, MISSING, MISSING
        if clean > 0:
            least = keep * clean
            units = smallest(
                self.model, self.ranking, self.metric, order, least, self.values, self.tries
            )
        if units is not None:
            share, random = self._shares(units, order, pool)
        return Smallest(None if units is None else flat(units), share, random)

    def _shares(
        self, kept: Sequence[Unit], order: Sequence[Unit], pool: Sequence[Unit]
    ) -> tuple[Interval, Interval]:
        """Return the share of the metric that a set and random ones of its size keep."""
        generator = np.random.default_rng(self.seed)
        sets = [[], [unit for unit in order if unit not in set(kept)]]
        for _ in range(self.orders):
            chosen = generator.permutation(len(pool))[len(kept) :]
            sets.append([pool[at] for at in chosen])
        scores = self._measured([flat(units) for units in sets])
        clean, along_order, random = scores[:, 0], scores[:, 1], scores[:, 2:].mean(1)
        return _ratio(along_order, clean, self.seed), _ratio(random, clean, self.seed)

    def _measured(self, sets: Sequence[Sequence[Head]]) -> Array:
        """Return the metric of the measuring prompts without each set (prompt, set)."""
        return ablated_metric(self.model, self.measuring, self.metric, sets, self.values)


def _ratio(part: Array, whole: Array, seed: int) -> Interval:
    """Return a ratio of means and its bootstrap interval over prompts.

    None where the interval of the whole reaches below 0: nothing is a share of that.
    """
    if bootstrap(whole, seed=seed)[1] <= 0:
        return MISSING
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = float(part.mean() / whole.mean())
        if len(part) < 2:
            return ratio, float("nan"), float("nan")
        weights = draws(len(part), 1000, seed)
        resampled = weights @ part / (weights @ whole)
    resampled = np.where(np.isfinite(resampled), resampled, np.nan)
    lower, upper = map(float, percentiles(resampled, 0.025))
    return ratio, lower, upper

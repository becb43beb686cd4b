"""What is left of a task along orders of removal, in single layers, and in the smallest set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.edited_metric import without
from headscope.analyses._runtime.results import interval, variable
from headscope.analyses._stats.bootstrap import bootstrap, crossed, draws, percentiles
from headscope.analyses.head_importance._removal_order import (
    Unit,
    flat,
    prefixes,
    smallest,
    spaced,
    tries,
)

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

SOURCE = "Michel et al. 1905.10650"
Array = NDArray[np.float64]
Row = tuple[Any, Any, Any]


@dataclass(frozen=True)
class Pruned:
    """What every curve of one run shares."""

    model: Model
    task: Task
    metric: str
    values: Any
    share: float
    points: int
    orders: int
    seed: int

    @property
    def smooth(self) -> str:
        """Metric that heads are ranked by: the accuracy has too many ties."""
        return "log_probability" if self.metric == "accuracy" else self.metric

    @property
    def ranking(self) -> Task:
        """Every other prompt, for finding orders and sets."""
        return replace(self.task, prompts=self.task.prompts[0::2])

    @property
    def measuring(self) -> Task:
        """The prompts that nothing was found on."""
        return replace(self.task, prompts=self.task.prompts[1::2])

    def total(self, single: Sequence[Unit], grouped: Sequence[Unit]) -> int:
        """Return how many sets of heads are tried in all."""
        layers = len(self.model.geometry.attending)
        whole = 1 + layers * (self.model.heads + 1)
        for pool, orders in ((single, 3), (grouped, 1)):
            if pool is single or len(pool) < len(single):
                measured = (orders + self.orders) * len(spaced(len(pool), self.points))
                whole += tries(len(pool), self.share) + measured
        return whole

    def curves(
        self,
        named: dict[str, list[Unit]],
        pool: Sequence[Unit],
        counts: Sequence[int],
        step: Callable[[], None],
    ) -> tuple[Array, Array, Array]:
        """Return the metric along orders and along random ones (order, removed), with ends."""

        def along(order: Sequence[Unit]) -> Array:
            sets = prefixes(order, counts)
            return without(self.model, self.measuring, self.metric, sets, self.values, step)

        rows: list[Row] = [bootstrap(along(order), seed=self.seed) for order in named.values()]
        generator = np.random.default_rng(self.seed)
        drawn = np.stack(
            [along([pool[at] for at in generator.permutation(len(pool))])
             for _ in range(self.orders)]
        )  # fmt: skip
        ends = [crossed(drawn[:, :, at], seed=self.seed) for at in range(len(counts))]
        rows.append(tuple(np.array(end) for end in zip(*ends, strict=True)))  # type: ignore[arg-type]
        mean, lower, upper = (np.stack(side) for side in zip(*rows, strict=True))
        return mean, lower, upper

    def layers(self, step: Callable[[], None]) -> tuple[Array, Array]:
        """Return what is lost with one head a layer, and with none (prompt, layer[, head])."""
        model, width = self.model, range(self.model.heads)
        intact = without(model, self.task, self.metric, [()], self.values, step)
        only = np.full((len(self.task), model.layers, model.heads), np.nan)
        whole = np.full((len(self.task), model.layers), np.nan)
        for layer in model.geometry.attending:
            sets = [[(layer, other) for other in width if other != head] for head in width]
            sets.append([(layer, head) for head in width])
            found = intact - without(model, self.task, self.metric, sets, self.values, step)
            only[:, layer], whole[:, layer] = found[:, :-1], found[:, -1]
        return only, whole

    def smallest(
        self, order: Sequence[Unit], pool: Sequence[Unit], keep: float
    ) -> tuple[dict[str, xr.Variable], list[tuple[int, int]]]:
        """Return the smallest set along the greedy order, and what it keeps on other prompts."""
        shape = (self.model.layers, self.model.heads)
        intact = without(self.model, self.ranking, self.metric, [()], self.values).mean()
        found = None
        if intact > 0:
            least = keep * intact
            found = smallest(self.model, self.ranking, self.metric, order, least, self.values)
        mask = np.full(shape, np.nan if found is None else 0.0)
        heads = [] if found is None else flat(found)
        for head in heads:
            mask[head] = 1.0
        missing = (float("nan"),) * 3
        own, others = missing, missing
        if found is not None:
            generator = np.random.default_rng(self.seed)
            sets = [[unit for unit in order if unit not in set(found)]]
            for _ in range(self.orders):
                chosen = generator.permutation(len(pool))[len(found) :]
                sets.append([pool[at] for at in chosen])
            scores = without(
                self.model, self.measuring, self.metric, [[], *map(flat, sets)], self.values
            )
            own = _ratio(scores[:, 1], scores[:, 0], self.seed)
            others = _ratio(scores[:, 2:].mean(1), scores[:, 0], self.seed)
        said = f"set found on {len(self.ranking)} prompts, measured on {len(self.measuring)} others"
        rule = f"greedy order, at least {keep:g} of the metric; no head of it can go as well"
        given: dict[str, Any] = {"source": SOURCE, "evidence": "causal"}
        return {
            "kept": variable(("layer", "head"), mask, "In the smallest set", "1 kept", "sequential",
                             0, 1, convention=rule, **given),
            "size": variable((), float("nan") if found is None else float(len(heads)),
                             "Heads in the smallest set", "heads", "sequential", 0,
                             convention=rule, **given),
            **interval("kept_share", (), *own, "Share of the metric that the smallest set keeps",
                       "share", "diverging", convention=said, **given),
            **interval("random_share", (), *others, "Share that random sets of its size keep",
                       "share", "diverging", convention=f"{self.orders} sets; {said}", **given),
        }, heads  # fmt: skip


def _ratio(part: Array, whole: Array, seed: int) -> tuple[float, float, float]:
    """Return a ratio of means and its bootstrap interval over prompts."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = float(part.mean() / whole.mean())
        if len(part) < 2:
            return ratio, float("nan"), float("nan")
        weights = draws(len(part), 1000, seed)
        resampled = weights @ part / (weights @ whole)
    lower, upper = percentiles(np.where(np.isfinite(resampled), resampled, np.nan)[:, None], 0.025)
    return ratio, float(lower[0]), float(upper[0])

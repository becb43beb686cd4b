"""Work that is expected of analyses: passes over their prompts, as they were counted.

Passes were counted on the bundled model (``benchmarks/passes.py``) and are scaled to the heads,
layers and prompts of another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from headscope import analyses
from headscope.analyses._interventions import prefix_reuse
from headscope.analyses._interventions.ablation import SWEEP_TOKENS
from headscope.analyses._interventions.screening import FEW, FIRST, SAMPLE
from headscope.analyses._relevance import perturbation
from headscope.analyses._runtime import options as check

if TYPE_CHECKING:
    from headscope.analyses._runtime.inputs import PromptSets
    from headscope.analyses._runtime.pass_costs import PassCosts

# Many analyses check their finding causally on the first few prompts alone.
FIRST_PROMPTS = 16
# How passes grow with the layers where they follow the score: points of integrated gradients were
# 9 to 14 in 4 layers and 165 to 227 in 30.
DEPTH = 1.4


@dataclass(frozen=True)
class Row:
    """What was counted of an analysis on the bundled model, its capture left out.

    Four numbers: passes (one with its backward pass counting three), those with a backward pass,
    calls of each layer a prompt, and positions unembedded a token.

    Attributes
    ----------
    fixed, screened
        Work whatever the number of heads; where not all heads are ablated.
    first, each
        Work on the first `FIRST_PROMPTS` prompts alone, and work that is as much as on so many
        prompts, however many there are.
    deep
        Work that grows with the layers to the power of `DEPTH`, of a method that follows the score.
    per_head, per_head_each, sweep_positions
        Ablations of each head, likewise on all prompts and on so many, and positions unembedded a
        token in one.
    singles
        Share of the ablations that run alone, not with the others of their layer.
    head_positions, head_rows
        Positions unembedded for each head outside of passes: a token, and the most at once.
    ranked
        Heads that the screening chooses beside its sample, as a multiple of `screening.FIRST`.
    rest
        Time beside the passes, in calls of a layer.
    most
        Tokens of the largest pass outside ablations, as a multiple of the longest prompt.
    layers
        Layers of the model that was counted, where ``first`` and ``each`` are once a layer, or work
        is ``deep``.
    """

    fixed: Sequence[float] = (0.0,) * 4
    screened: Sequence[float] = (0.0,) * 4
    first: Sequence[float] = (0.0,) * 4
    each: Sequence[float] = (0.0,) * 4
    deep: Sequence[float] = (0.0,) * 4
    per_head: float = 0.0
    per_head_each: float = 0.0
    sweep_positions: float = 0.0
    singles: float = 0.0
    head_positions: float = 0.0
    head_rows: float = 0.0
    ranked: float = 1.0
    rest: float = 0.0
    most: float = 0.0
    layers: float = 0.0


@dataclass(frozen=True)
class Expected:
    """Expected work on prompts of some lengths.

    Passes over all of them and those with a backward pass, as in `Row`; calls of a layer, positions
    unembedded, heads that are ablated together, and time beside the passes in calls.
    """

    lengths: list[int]
    layers: int
    passes: float
    sloped: float
    calls: float
    unembedded: float
    together: float
    rest: float = 0.0

    def total(self, costs: PassCosts | None) -> float:
        """Return the work in `work.weight` of layers, as it is counted while it is done.

        With known costs the time beside the passes is a part of it, which is done at the end.
        """
        whole = self.passes * sum(self.lengths) * self.layers
        if costs is None or not whole:
            return whole
        seconds = self.seconds(costs)
        return whole * seconds / (seconds - self.rest * costs.call)

    def seconds(self, costs: PassCosts) -> float:
        """Return the seconds that it takes."""
        plain = self.passes - 3 * self.sloped
        slower = (plain + costs.sloped * self.sloped) / (plain + self.sloped or 1.0)
        tokens = (plain + self.sloped) * sum(self.lengths) * self.layers
        layers = slower * self.calls * costs.seconds(tokens / self.calls) if self.calls else 0.0
        return layers + self.unembedded * costs.unembedded + self.rest * costs.call


def expect(
    name: str, sets: PromptSets, options: Mapping[str, Any], captured: Collection[Any] = ()
) -> Expected | None:
    """Return the work that is expected of an analysis; None where it was not counted.

    ``captured`` are prompt sets that will have been captured before it. What an analysis says of
    itself by ``replaced_passes`` is not among what was counted.
    """
    model, row = sets.model, rows().get(name)
    if row is None or model.reads != "tokens" or model.attention != "self":
        return None
    if sets.drawn(name) is None:  # a capture without its prompts
        return None
    lengths, layers = list(map(len, sets.ids(name))), len(model.geometry.attending)
    count, total, heads = len(lengths), sum(lengths), layers * model.heads
    values = check.parse(name, analyses.options(name), options)
    exhaustive = values.get("exhaustive", "exhaustive" not in analyses.options(name))
    screened = heads > FEW and not exhaustive
    chosen = min(heads, row.ranked * FIRST + SAMPLE) if screened else heads
    work = np.asarray(row.screened if screened else row.fixed)
    if not screened:
        few, times = FIRST_PROMPTS / count, layers / row.layers if row.layers else 1.0
        work = work + times * (min(few, 1) * np.asarray(row.first) + few * np.asarray(row.each))
        work = work + times**DEPTH * np.asarray(row.deep)
    passes, sloped, calls, unembedded = work.clip(0) * (1, 1, layers * count, total)
    replaced = getattr(analyses.load(name), "replaced_passes", None)
    if replaced is not None:
        defaults = {key: option.default for key, option in analyses.options(name).items()}
        runs = np.asarray(replaced(model, sets.drawn(name), **{**defaults, **values}), dtype=float)
        # Work beside it is as much on prompts of another task.
        passes, sloped, unembedded = (
            runs[:, 0].sum() / total * part for part in (passes, sloped, unembedded)
        )
        calls *= len(runs) / count
        passes += runs.prod(axis=1).sum() / total
        calls += layers * np.ceil(runs[:, 1] / (perturbation.TOKENS // runs[:, 0]).clip(1)).sum()
        unembedded += runs[:, 1].sum()
    unembedded += heads * row.head_positions * total
    batches = [math.ceil(length * lengths.count(length) / SWEEP_TOKENS) for length in {*lengths}]
    together, ablations = 1.0, row.per_head + row.per_head_each * FIRST_PROMPTS / count
    if ablations:
        hit = layers * (1 - (1 - 1 / layers) ** chosen) if screened else layers
        together = min(chosen / hit, max(1, SWEEP_TOKENS * sum(batches) / total))
        passes += ablations * chosen * share(layers)
        alone = row.singles + (1 - row.singles) / together
        calls += ablations * sum(batches) * chosen * alone * (layers + 1) / 2
        unembedded += ablations * chosen * row.sweep_positions * total
        checked_lengths = prefix_reuse.checked(model)
        fresh = [*({*lengths} - checked_lengths)]
        # The first time that a model is met from every layer on, then from the last one alone.
        first_met = fresh[: 0 if checked_lengths else 1]
        passes += (sum(fresh) / layers + sum(first_met) * (layers - 1) / 2) / total
        calls += len(fresh) + len(first_met) * layers * (layers - 1) / 2
    if sets.to_capture(name) not in (None, *captured):
        passes += 1
        calls += len(batches) * layers
    numbers = map(float, (passes, sloped, calls, unembedded, together, row.rest))
    return Expected(lengths, layers, *numbers)


def share(layers: int) -> float:
    """Return the share of a pass that an ablation takes, which begins at the layer of its head."""
    return (layers + 1) / (2 * layers)


@cache
def rows() -> dict[str, Row]:
    """Return what was counted, by analysis."""
    file = files("headscope.analyses._runtime").joinpath("passes.json")
    table = json.loads(file.read_text(encoding="utf8"))
    return {name: Row(**row) for name, row in table.items() if "why" not in row}

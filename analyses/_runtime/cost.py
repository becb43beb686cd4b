"""Cost of analyses before they run: passes of the model over their prompts, seconds, and bytes.

Passes were counted on the bundled model (``benchmarks/passes.py``) and are scaled to the heads,
layers and prompts of another; seconds and bytes follow from short passes on this machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from headscope import analyses
from headscope.analyses._interventions import prefix_reuse
from headscope.analyses._interventions.ablation import SWEEP_TOKENS
from headscope.analyses._interventions.screening import FEW, FIRST, SAMPLE
from headscope.analyses._runtime import options as check
from headscope.analyses._runtime.inputs import PromptSets
from headscope.kernels.errors import HeadscopeError

if TYPE_CHECKING:
    from headscope.analyses._runtime.pass_costs import PassCosts
    from headscope.probes.models.model import Model

# Many analyses check their finding causally on the first few prompts alone.
FIRST_PROMPTS = 8


@dataclass(frozen=True)
class Cost:
    """What an analysis is expected to take; None where it was not counted.

    ``passes`` go over all ``tokens`` of its prompts, one with its backward pass counting three;
    ``captured`` are the bytes that it reads of a capture, ``memory`` those of its largest pass, at
    the peak, beyond the model and the capture.
    """

    analysis: str
    passes: float | None
    tokens: int
    seconds: float | None
    captured: int | None = None
    memory: int | None = None

    def __str__(self) -> str:
        """Say it in one line."""
        from headscope.probes.capturing.memory_estimate import format_bytes

        read = "" if self.captured is None else f", {format_bytes(self.captured)} captured"
        if self.passes is None or self.seconds is None:
            return f"{self.analysis}: how often it runs the model was not counted{read}"
        if not self.passes:
            return f"{self.analysis}: reads the capture{read}"
        times = "once" if round(self.passes, 2) == 1 else f"{self.passes:.3g} times"
        work = f"runs the model {times} over {self.tokens} tokens, about {duration(self.seconds)}"
        peak = "not known" if self.memory is None else format_bytes(self.memory)
        return f"{self.analysis}: {work}{read}, memory {peak}"


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
    per_head, per_head_each, sweep_asked
        Ablations of each head, likewise on all prompts and on so many, and positions unembedded a
        token in one.
    singles
        Share of the ablations that run alone, not with the others of their layer.
    head_asked, head_rows
        Positions unembedded for each head outside of passes: a token, and the most at once.
    ranked
        Heads that the screening chooses beside its sample, as a multiple of `screening.FIRST`.
    rest
        Time beside the passes, in calls of a layer.
    most
        Tokens of the largest pass outside ablations, as a multiple of the longest prompt.
    """

    fixed: Sequence[float] = (0.0,) * 4
    screened: Sequence[float] = (0.0,) * 4
    first: Sequence[float] = (0.0,) * 4
    each: Sequence[float] = (0.0,) * 4
    per_head: float = 0.0
    per_head_each: float = 0.0
    sweep_asked: float = 0.0
    singles: float = 0.0
    head_asked: float = 0.0
    head_rows: float = 0.0
    ranked: float = 1.0
    rest: float = 0.0
    most: float = 0.0


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
        layers = slower * (self.calls * costs.call + tokens * costs.token)
        return layers + self.unembedded * costs.unembedded + self.rest * costs.call


def estimate(
    names: Sequence[str],
    model: Model,
    prompts: Any,
    *,
    capture: Any = None,
    task: Any = None,
    n: int | None = None,
    seed: int = 0,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Cost]:
    """Say what analyses will take; the parameters are those of `runner.execute_many`."""
    from headscope.analyses._runtime import pass_costs

    sets = PromptSets(model, prompts, capture, task, n, seed)
    captured: set[Any] = set()
    costs = []
    for name in names:
        with suppress(HeadscopeError):
            sets.expect(name)
    for name in names:
        cost = Cost(name, None, 0, None)
        with suppress(HeadscopeError):  # the analysis itself says so when it runs
            cost = replace(cost, captured=pass_costs.captured(sets, name))
            expected = expect(name, sets, (options or {}).get(name, {}), captured)
            if expected is not None:
                speed = pass_costs.measure(model, sets.ids(name)[0])
                cost = replace(
                    cost, passes=expected.passes, tokens=sum(expected.lengths),
                    seconds=expected.seconds(speed),
                    memory=pass_costs.peak(sets, name, _rows()[name], expected, speed),
                )  # fmt: skip
            captured |= {sets.to_capture(name)} - {None}
        costs.append(cost)
    return costs


def expect(
    name: str, sets: PromptSets, options: Mapping[str, Any], captured: Collection[Any] = ()
) -> Expected | None:
    """Return the work that is expected of an analysis; None where it was not counted.

    ``captured`` are prompt sets that will have been captured before it.
    """
    model, row = sets.model, _rows().get(name)
    if row is None or model.reads != "tokens" or model.attention != "self":
        return None
    if sets.drawn(name) is None:  # a capture without its prompts
        return None
    lengths, layers = list(map(len, sets.ids(name))), len(model.geometry.attending)
    count, total, heads = len(lengths), sum(lengths), layers * model.heads
    asked = check.parse(name, analyses.options(name), options)
    exhaustive = asked.get("exhaustive", "exhaustive" not in analyses.options(name))
    screened = heads > FEW and not exhaustive
    chosen = min(heads, row.ranked * FIRST + SAMPLE) if screened else heads
    work = np.asarray(row.screened if screened else row.fixed)
    if not screened:
        few = FIRST_PROMPTS / count
        work = work + min(few, 1) * np.asarray(row.first) + few * np.asarray(row.each)
    passes, sloped, calls, unembedded = work.clip(0) * (1, 1, layers * count, total)
    unembedded += heads * row.head_asked * total
    batches = [math.ceil(length * lengths.count(length) / SWEEP_TOKENS) for length in {*lengths}]
    together, ablations = 1.0, row.per_head + row.per_head_each * FIRST_PROMPTS / count
    if ablations:
        hit = layers * (1 - (1 - 1 / layers) ** chosen) if screened else layers
        together = min(chosen / hit, max(1, SWEEP_TOKENS * sum(batches) / total))
        passes += ablations * chosen * share(layers)
        alone = row.singles + (1 - row.singles) / together
        calls += ablations * sum(batches) * chosen * alone * (layers + 1) / 2
        unembedded += ablations * chosen * row.sweep_asked * total
        fresh = {*lengths} - prefix_reuse.checked(model)
        passes += sum(fresh) * (layers - 1) / 2 / total
        calls += len(fresh) * layers * (layers - 1) / 2
    if sets.to_capture(name) not in (None, *captured):
        passes += 1
        calls += len(batches) * layers
    numbers = map(float, (passes, sloped, calls, unembedded, together, row.rest))
    return Expected(lengths, layers, *numbers)


def share(layers: int) -> float:
    """Return the share of a pass that an ablation takes, which begins at the layer of its head."""
    return (layers + 1) / (2 * layers)


def duration(seconds: float) -> str:
    """Say a duration in the unit that reads best.

    >>> duration(0.4), duration(75), duration(7200)
    ('1 s', '1 min 15 s', '2 h 0 min')
    """
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@cache
def _rows() -> dict[str, Row]:
    file = files("headscope.analyses._runtime").joinpath("passes.json")
    table = json.loads(file.read_text(encoding="utf8"))
    return {name: Row(**row) for name, row in table.items() if "why" not in row}

"""Cost of analyses before they run: passes of the model over their prompts, seconds, and bytes.

Seconds and bytes follow from the expected work and from short passes on this machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from headscope import analyses
from headscope.analyses._interventions.ablation import SWEEP_TOKENS
from headscope.analyses._relevance import perturbation
from headscope.analyses._runtime.expected_work import Expected, expect, rows
from headscope.analyses._runtime.inputs import PromptSets, positionals
from headscope.analyses._runtime.requirements import Needs
from headscope.kernels.errors import HeadscopeError

if TYPE_CHECKING:
    from headscope.analyses._runtime.pass_costs import PassCosts
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

# Logits are held twice: as they come, and as what a metric or a loss makes of them.
LOGITS = 2


@dataclass(frozen=True)
class Cost:
    """What an analysis is expected to take; None where it was not counted.

    ``passes`` go over all ``tokens`` of its prompts, one with its backward pass counting three;
    ``captured`` are the bytes that it reads of a capture, ``memory`` those of its largest pass, at
    the peak, beyond the model and the capture. ``prompts`` says which prompts they are.
    """

    analysis: str
    passes: float | None
    tokens: int
    seconds: float | None
    captured: int | None = None
    memory: int | None = None
    prompts: str = ""

    def __str__(self) -> str:
        """Say it in one line."""
        from headscope.probes.capturing.memory_estimate import format_bytes

        read = "" if self.captured is None else f", {format_bytes(self.captured)} captured"
        if self.passes is None or self.seconds is None:
            return f"{self.analysis}: how often it runs the model was not counted{read}"
        if not self.passes:
            return f"{self.analysis}: reads the capture{read}"
        times = "once" if round(self.passes, 2) == 1 else f"{self.passes:.3g} times"
        over = f"{self.prompts} ({self.tokens} tokens)" if self.prompts else f"{self.tokens} tokens"
        work = f"runs the model {times} over {over}, about {duration(self.seconds)}"
        peak = "not known" if self.memory is None else format_bytes(self.memory)
        return f"{self.analysis}: {work}{read}, memory {peak}"


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
    own_task: Task | None = None,
) -> list[Cost]:
    """Say what analyses will take; the parameters are those of `runner.execute_many`."""
    from headscope.analyses._runtime import pass_costs

    sets = PromptSets(model, prompts, capture, task, n, seed, own_task=own_task)
    captured: set[Any] = set()
    costs = []
    for name in names:
        with suppress(HeadscopeError):
            sets.expect(name)
    for name in names:
        cost = Cost(name, None, 0, None)
        with suppress(HeadscopeError):  # the analysis itself says so when it runs
            cost = replace(cost, captured=_captured(sets, name))
            expected = expect(name, sets, (options or {}).get(name, {}), captured)
            if expected is not None:
                speed = pass_costs.measure(model, sets.ids(name)[0])
                cost = replace(
                    cost, passes=expected.passes, tokens=sum(expected.lengths),
                    prompts=sets.describe(name),
                    seconds=expected.seconds(speed),
                    memory=_peak(sets, name, expected, speed),
                )  # fmt: skip
            captured |= {sets.to_capture(name)} - {None}
        costs.append(cost)
    return costs


def _captured(sets: PromptSets, name: str) -> int | None:
    """Count the bytes that an analysis reads of a capture of its prompts; None without prompts."""
    from headscope.probes.capturing.capture import stored_bytes

    drawn = sets.drawn(name)
    if "capture" not in positionals(name):
        return 0
    return None if drawn is None else stored_bytes(sets.model, drawn, **_needs(sets, name))


def _needs(sets: PromptSets, name: str) -> dict[str, Any]:
    from headscope.probes.capturing.options import applicable_stats

    needs: dict[str, Any] = Needs.of(analyses.load(name)).arguments()
    return {**needs, "stats": applicable_stats(needs["stats"], sets.model)}


def _peak(sets: PromptSets, name: str, expected: Expected, costs: PassCosts) -> int | None:
    """Count the bytes of the largest pass of an analysis, beyond the model and what it captured.

    Activations as measured, attention as estimated, logits as the number of positions has them;
    None where it runs the model on nothing.
    """
    if not expected.passes:
        return None
    from headscope import probes
    from headscope.analyses._interventions import head_gradients
    from headscope.probes.capturing.memory_estimate import BATCH_TOKENS
    from headscope.probes.prompts.prompt_batch import batches

    model, ids, row = sets.model, sets.ids(name), rows()[name]
    memory = getattr(analyses.load(name), "memory", None)
    if memory is not None:
        return int(memory(model, ids))
    config: Any = model.module.config.get_text_config()
    largest_batch = max(len(batch) * len(ids[batch[0]]) for batch in batches(ids, BATCH_TOKENS))
    captures = sets.to_capture(name) is not None
    needs = _needs(sets, name) if captures else {"stats": ()}
    per_token = probes.plan(model, sets.drawn(name), **needs).passing / largest_batch
    # One prompt at a time, or as many of one length as fit.
    longest = max(map(len, ids))
    tokens = largest_batch if row.most > 1.5 or captures else longest
    if any(row.each):  # of prompts of its own
        tokens = max(tokens, min(int(row.most * longest), BATCH_TOKENS))
    if hasattr(analyses.load(name), "replaced_passes"):
        tokens = max(tokens, max(1, perturbation.TOKENS // longest) * longest)
    word = 4 * model.vocabulary * LOGITS
    share = min(expected.unembedded / (expected.passes * sum(map(len, ids))), 1.0)
    heads = len(model.geometry.attending) * model.heads
    peaks = [tokens * (per_token + share * word), heads * row.head_rows * word]
    if expected.sloped:
        batch_tokens = head_gradients.batch_tokens(model)
        peaks.append(
            min(max(batch_tokens, longest), largest_batch) * costs.sloped_bytes
            + share * largest_batch * word
        )
    if row.per_head or row.per_head_each:
        batch = min(largest_batch, max(SWEEP_TOKENS, longest))
        streams = 4 * batch * (model.layers + 1) * int(config.hidden_size)
        peaks.append(streams + batch * expected.together * (per_token + row.sweep_positions * word))
    return math.ceil(max(peaks))


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

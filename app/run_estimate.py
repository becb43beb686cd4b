"""What a new run will take: tokens, seconds and bytes, before it is captured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from headscope import probes

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

# Tokens of the timed captures: of several short prompts, and of a long one.
SHORT, LONG = 128, 1024


class RunEstimate(NamedTuple):
    """Numbers of a run: its prompts, their tokens, the longest, and what the capture takes."""

    prompts: int
    tokens: int
    longest: int
    seconds: float
    disk: int
    memory: int
    available: int


def estimate(model: Model, prompts: Any, stats: Sequence[str]) -> RunEstimate:
    """Time captures of a few tokens on this machine, and plan memory and disk for all of them.

    A prompt of n tokens takes a·n + b·n² seconds; b is measured where one has more than `SHORT`.

    Raises
    ------
    ResourceLimit
        Where the capture does not fit into memory.
    """
    from headscope.probes.prompts.reading import read

    plan = probes.plan(model, prompts, stats=stats, out=Path("capture.safetensors"))
    plan.check()
    batch = read(model, prompts)
    lengths = list(map(len, batch.ids))
    longest = max(batch.ids, key=len)
    sample: list[Any] = []
    for ids in batch.ids:
        if sum(map(len, sample)) < 4 * SHORT:
            sample.append(ids[:SHORT])
    per_token = _seconds(model, sample, stats) / sum(map(len, sample))
    steeper = 0.0
    if len(longest) > SHORT:
        part = longest[:LONG]
        steeper = max(_seconds(model, [part], stats) / len(part) - per_token, 0) / len(part)
    seconds = per_token * sum(lengths) + steeper * sum(length**2 for length in lengths)
    return RunEstimate(
        len(lengths), sum(lengths), len(longest), seconds, plan.disk, plan.memory, plan.available
    )


def _seconds(model: Model, ids: Sequence[Any], stats: Sequence[str]) -> float:
    """Time the second of two captures."""
    for _ in range(2):
        start = time.perf_counter()
        probes.capture(model, list(ids), stats=stats)
    return time.perf_counter() - start

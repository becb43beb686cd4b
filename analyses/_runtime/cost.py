"""Cost of analyses before they run: passes of the model over their prompts, and seconds.

Passes were counted on the bundled model (``benchmarks/passes.py``) and are scaled to the heads of
another; seconds follow from a timed pass on this machine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from headscope import analyses
from headscope.analyses._interventions.screening import FEW, FIRST, SAMPLE
from headscope.analyses._runtime import options as check
from headscope.analyses._runtime.inputs import PromptSets
from headscope.kernels.errors import HeadscopeError

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

# Tokens of the timed pass.
TIMED = 512
# Many analyses check their finding causally on the first few prompts alone.
FIRST_PROMPTS = 8


@dataclass(frozen=True)
class Cost:
    """What an analysis is expected to take; None where it was not counted.

    ``passes`` go over all ``tokens`` of its prompts; ``seconds`` are those of the passes alone.
    """

    analysis: str
    passes: float | None
    tokens: int
    seconds: float | None

    def __str__(self) -> str:
        """Say it in one line."""
        if self.passes is None or self.seconds is None:
            return f"{self.analysis}: how often it runs the model was not counted"
        if not self.passes:
            return f"{self.analysis}: reads the capture"
        times = f"runs the model {self.passes:.3g} times over {self.tokens} tokens"
        return f"{self.analysis}: {times}, about {duration(self.seconds)}"


def estimate(
    names: Sequence[str],
    model: Model,
    prompts: Any,
    *,
    task: Any = None,
    n: int | None = None,
    seed: int = 0,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Cost]:
    """Say what analyses will take; the parameters are those of `runner.execute_many`."""
    if model.reads != "tokens" or model.attention != "self":
        return [Cost(name, None, 0, None) for name in names]
    sets = PromptSets(model, prompts, None, task, n, seed, None)
    speed: float | None = None
    costs = []
    for name in names:
        try:
            drawn = sets.drawn(name)
            lengths = prompt_lengths(model, drawn)
        except HeadscopeError:  # the analysis itself says so when it runs
            costs.append(Cost(name, None, 0, None))
            continue
        count = sum(lengths)
        if speed is None:
            speed = seconds_per_token(model, drawn)
        number = passes(name, model, len(lengths), (options or {}).get(name, {}))
        seconds = None if number is None else number * count * speed
        costs.append(Cost(name, number, count, seconds))
    return costs


def passes(name: str, model: Model, prompts: int, options: Mapping[str, Any]) -> float | None:
    """Return how often an analysis runs a model over so many prompts; None where not counted."""
    counted = _table().get(name, {})
    if "fixed" not in counted:
        return None
    asked = check.parse(name, analyses.options(name), options)
    exhaustive = asked.get("exhaustive", "exhaustive" not in analyses.options(name))
    # Counted with the capture, which a run holds for analyses of its own prompts.
    captured = 0 if hasattr(analyses.load(name), "TASK") else 1
    screened = not exhaustive and len(model.geometry.attending) * model.heads > FEW
    fixed = max(float(counted["screened" if screened else "fixed"]) - captured, 0)
    if not screened:
        fixed += counted.get("first", 0) * min(FIRST_PROMPTS / prompts, 1)
    return fixed + of_heads(model, float(counted["per_head"]), exhaustive=exhaustive)


def of_heads(model: Model, each: float, *, exhaustive: bool) -> float:
    """Return the passes of ``each`` ablations of every head that is ablated.

    A pass with an edit begins at the layer of the edit.
    """
    layers = len(model.geometry.attending)
    heads = layers * model.heads
    if heads > FEW and not exhaustive:
        heads = min(heads, 2 * FIRST + SAMPLE)
    return each * heads * (layers + 1) / (2 * layers)


def tokens(name: str, model: Model, prompts: Any, n: int | None = None) -> int:
    """Return the tokens of the prompts that an analysis runs on."""
    sets = PromptSets(model, prompts, None, None, n, 0, None)
    return sum(prompt_lengths(model, sets.drawn(name)))


def prompt_lengths(model: Model, prompts: Any) -> list[int]:
    """Return the tokens of every prompt."""
    from headscope.probes.prompts.reading import read

    return list(map(len, read(model, prompts).ids))


def seconds_per_token(model: Model, prompts: Any) -> float:
    """Time a pass over some of the prompts, the second of two, in seconds a token."""
    import torch

    from headscope.kernels.api import Request
    from headscope.probes.attention.forward import Reader, run
    from headscope.probes.prompts.prompt_batch import batches
    from headscope.probes.prompts.reading import read

    ids = read(model, prompts).ids
    some = next(iter(batches(ids, TIMED)))
    batch = torch.tensor([ids[row] for row in some])
    with torch.no_grad():
        for _ in range(2):
            start = time.perf_counter()
            run(model, batch, Reader(Request(stats=())), head=False)
    return (time.perf_counter() - start) / batch.numel()


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
def _table() -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = json.loads(
        files("headscope.analyses._runtime").joinpath("passes.json").read_text(encoding="utf8")
    )
    return table

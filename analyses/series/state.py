"""States of a model during its training: what to load, what to call it, at which step it is."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headscope.kernels.errors import InvalidInput
from headscope.probes.models.checkpoints import checkpoints, stamp
from headscope.probes.models.model_source import step_of


@dataclass(frozen=True)
class State:
    """One checkpoint of a series: what `load_model` takes, its name, and its training step.

    The ``label`` is a short name, unique in the series.
    """

    source: Any
    name: str
    label: str
    step: float

    def stamp(self) -> str:
        """Return a key that changes when the checkpoint does."""
        if isinstance(self.source, str | os.PathLike):
            return stamp(self.source)
        return str(self.source.revision)


def states(sources: Any, steps: Sequence[float] | None = None) -> list[State]:
    """List the checkpoints of a series in order of their steps.

    The parameters are those of `timeline`; entries of a list that end with ``@*`` stand for all of
    theirs.

    Raises
    ------
    InvalidInput
        For fewer than two checkpoints, a name without a step, or two at one step.

    Examples
    --------
    >>> [state.label for state in states(["runs/checkpoint-20", "runs/checkpoint-3"])]
    ['checkpoint-3', 'checkpoint-20']
    """
    single = isinstance(sources, str | os.PathLike)
    series: list[Any] = []
    for source in [sources] if single else sources:
        text = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
        whole = text.endswith("@*") or (single and step_of(text) is None)
        series += checkpoints(source) if whole else [source]
    if len(series) < 2:
        raise InvalidInput(f"checkpoints: {len(series)} given; a timeline needs at least two")
    names = [_name(source) for source in series]
    if steps is None:
        numbers = [step_of(name) for name in names]
        if None in numbers:
            raise InvalidInput(
                f"steps: {names[numbers.index(None)]} names no training step, as checkpoint-400 or "
                "NAME@step400 do; give the steps"
            )
        steps = [float(step) for step in numbers if step is not None]
    if len(steps) != len(series):
        raise InvalidInput(f"steps: {len(steps)} for {len(series)} checkpoints; give one each")
    step, count = Counter(steps).most_common(1)[0]
    if count > 1:
        raise InvalidInput(f"steps: {count} checkpoints are at step {step:g}; give each its own")
    short = [name.rsplit("@", 1)[-1] if "@" in name else Path(name).name for name in names]
    labels = short if len(set(short)) == len(short) else names
    if len(set(labels)) < len(labels):
        raise InvalidInput("checkpoints: one is given twice; leave it out")
    rows = zip(series, names, labels, steps, strict=True)
    return sorted((State(*row) for row in rows), key=lambda state: state.step)


def _name(source: Any) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if not hasattr(source, "revision"):
        raise InvalidInput(
            f"checkpoints: {type(source).__name__} is no name, folder or model of load_model"
        )
    return str(source.name)

"""States of a model during its training: what to load, what to call it, at which step it is."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headscope.kernels.errors import InvalidInput


@dataclass(frozen=True)
class State:
    """One checkpoint of a series.

    Attributes
    ----------
    source
        What `load_model` takes.
    name
        The source in words.
    label
        Short name, unique in the series.
    step
        Training step.
    """

    source: Any
    name: str
    label: str
    step: float

    def stamp(self) -> str:
        """Return a key that changes when the checkpoint does."""
        from headscope.probes.models.checkpoints import stamp

        if isinstance(self.source, str | os.PathLike):
            return stamp(self.source)
        return str(self.source.revision)


def states(sources: Any, steps: Sequence[float] | None = None) -> list[State]:
    """List the checkpoints of a series in order of their steps.

    Parameters
    ----------
    sources
        ``NAME@*`` or a folder for all checkpoints of one, or a list: names, folders, or models of
        `load_model`; entries that end with ``@*`` stand for all of theirs.
    steps
        Training step of each; read from the names where not given.

    Raises
    ------
    InvalidInput
        For fewer than two checkpoints, a name without a step, or two at one step.

    Examples
    --------
    >>> [one.label for one in states(["runs/checkpoint-20", "runs/checkpoint-3"])]
    ['checkpoint-3', 'checkpoint-20']
    """
    from headscope.probes.models.checkpoints import checkpoints
    from headscope.probes.models.model_source import step_of

    one = isinstance(sources, str | os.PathLike)
    given: list[Any] = []
    for source in [sources] if one else sources:
        text = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
        whole = text.endswith("@*") or (one and step_of(text) is None)
        given += checkpoints(source) if whole else [source]
    if len(given) < 2:
        raise InvalidInput(f"checkpoints: {len(given)} given; a timeline needs at least two")
    names = [_name(source) for source in given]
    if steps is None:
        found = [step_of(name) for name in names]
        if None in found:
            raise InvalidInput(
                f"steps: {names[found.index(None)]} names no training step, as checkpoint-400 or "
                "NAME@step400 do; give the steps"
            )
        steps = [float(step) for step in found if step is not None]
    if len(steps) != len(given):
        raise InvalidInput(f"steps: {len(steps)} for {len(given)} checkpoints; give one each")
    for step, count in Counter(steps).items():
        if count > 1:
            raise InvalidInput(
                f"steps: {count} checkpoints are at step {step:g}; give each its own"
            )
    short = [name.rsplit("@", 1)[-1] if "@" in name else Path(name).name for name in names]
    labels = short if len(set(short)) == len(short) else names
    if len(set(labels)) < len(labels):
        raise InvalidInput("checkpoints: one is given twice; leave it out")
    rows = zip(given, names, labels, steps, strict=True)
    return sorted((State(*row) for row in rows), key=lambda one: one.step)


def _name(source: Any) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if not hasattr(source, "revision"):
        raise InvalidInput(
            f"checkpoints: {type(source).__name__} is no name, folder or model of load_model"
        )
    return str(source.name)

"""Prompt sets that a job supplies to its analyses; each is made once and captured once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import xarray as xr

from headscope import analyses
from headscope.analyses._runtime.options import refuse_sigmoid
from headscope.analyses._runtime.requirements import Needs
from headscope.kernels.errors import InvalidInput, NotApplicable

if TYPE_CHECKING:
    from headscope.analyses._measurements.recall_capacity import Capacity
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

SUPPLIED = ("capture", "model", "prompts", "task", "sae")
DEFAULT_PROMPTS = 32
ANY_TASK = "ioi"
"""Task of the analyses that can ask any with answers; a task of the user's own takes its place."""

Progress = Callable[[str, float, float], None]


def positionals(name: str) -> tuple[str, ...]:
    """List what the suite supplies to an analysis, in the order of its signature."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.signature(analyses.load(name).run)
    return tuple(
        parameter.name for parameter in signature.parameters.values() if parameter.kind in kinds
    )


def _supports(name: str) -> Collection[str]:
    return getattr(analyses.load(name), "SUPPORTS", ())


class PromptSets:
    """The prompt sets of a job: each made once, and captured once for all that need it."""

    def __init__(
        self,
        model: Model,
        prompts: Any,
        capture: xr.Dataset | None,
        task: Any,
        n: int | None,
        seed: int,
        sae: Any = None,
        own_task: Task | None = None,
    ) -> None:
        self.model, self.prompts, self.seed, self.own_task = model, prompts, seed, own_task
        self.task, self.n, self.sae = task, n, sae
        self._needs: dict[Any, Needs] = {}
        self._prompts: dict[Any, Any] = {None: prompts}
        self._captures: dict[Any, xr.Dataset] = {}
        self._intact: dict[Any, tuple[str, bool]] = {}
        self._capacity: dict[Any, Capacity | None] = {}
        if capture is not None:
            self._captures[None] = capture

    def expect(self, name: str) -> None:
        """Announce an analysis, so that its needs join the one capture of its prompt set."""
        unknown = [argument for argument in positionals(name) if argument not in SUPPLIED]
        if unknown:
            raise InvalidInput(
                f"{name}: run() asks for {unknown[0]!r}, which the suite does not supply; "
                f"it supplies {', '.join(SUPPLIED)}"
            )
        key = self._key(name)
        if key is None and self.prompts is None and None not in self._captures:
            raise NotApplicable(f"prompts: {name} runs on your own prompts; give some")
        needs, sigmoid = Needs.of(analyses.load(name)), self.model.geometry.sigmoid
        if sigmoid and "sigmoid" not in _supports(name):
            return  # it will be refused, and the others do without what it needs
        if sigmoid and "received" in needs.stats:
            needs |= Needs(stats=("received_share",))
        self._needs[key] = self._needs.get(key, Needs()) | needs

    def check(self, name: str) -> None:
        """Refuse an analysis that cannot measure the model, before anything is drawn for it."""
        refuse_sigmoid(self.model, name, _supports(name))
        needs_task = hasattr(analyses.load(name), "TASK")
        if needs_task and self.model.reads == "images":
            raise NotApplicable(
                f"task: {name} asks in words, and {self.model.architecture} reads images; see sinks"
            )
        if needs_task and self.model.attention != "self":
            raise NotApplicable(
                f"task: {name} asks for the next word of single texts, and {self.model.name} has "
                "an encoder and a decoder; see sinks"
            )

    def supply(self, name: str, argument: str) -> Any:
        """Return one positional argument of an analysis."""
        key = self._key(name)
        if argument == "model":
            return self.model
        if argument == "capture":
            return self._capture(key, name)
        if argument == "sae":
            return self.sae
        prompts = self._prompts_of(key)
        if argument == "task" and not hasattr(prompts, "metric"):
            raise NotApplicable(f"task: {name} needs answers; give a task, not plain prompts")
        return prompts

    def drawn(self, name: str) -> Any:
        """Return the prompts of an analysis: of its own task, or those of the run."""
        return self._prompts_of(self._key(name))

    def ids(self, name: str) -> Sequence[Sequence[int]]:
        """Return the token ids of every prompt of an analysis."""
        from headscope.probes.prompts.reading import read

        return read(self.model, self.drawn(name)).ids

    def describe(self, name: str) -> str:
        """Say which prompts an analysis runs on."""
        drawn, key = self.drawn(name), self._key(name)
        count = len(self.ids(name))
        plural = "s" * (count != 1)
        if key is not None and hasattr(drawn, "name"):
            return f"{count} prompt{plural} of {drawn.name}"
        return f"the run's {count} prompt{plural}"

    def to_capture(self, name: str) -> Any:
        """Return the key of the prompt set that an analysis has captured first; else None."""
        if "capture" not in positionals(name):
            return None
        key = self._key(name)
        data, needs = self._captures.get(key), self._needs.get(key, Needs())
        if not (needs.stats or needs.keep):  # no prompt is run for nothing
            return None
        return None if data is not None and needs.held_by(data) else (key,)

    def state(self, name: str, result: xr.Dataset) -> None:
        """Add the intact model's score on the task to a result."""
        from headscope.analyses._interventions import intact_task

        key = self._key(name)
        task = self._prompts_of(key)
        if not hasattr(analyses.load(name), "TASK") or not hasattr(task, "metric"):
            return
        if key not in self._intact:
            self._intact[key] = intact_task.measure(self.model, task)
        text, low = self._intact[key]
        if text:
            result.attrs["intact"] = text
        if low:
            note = result.attrs.get("note", "")
            result.attrs["note"] = f"The intact model is too low to conclude. {note}".strip()
            if result.attrs.get("verdict") == "supported":
                result.attrs["verdict"] = "too_few"
        capacity = self._capacity.get(key)
        if capacity is not None:
            capacity.state(result)
            if not capacity.pairs:
                result.attrs["verdict"] = "too_few"

    def _key(self, name: str) -> Any:
        module = analyses.load(name)
        own = getattr(module, "TASK", None)
        if own is None or (self.task is not None and self.task is self.prompts):  # captured once
            return None
        if self.task is None and self.own_task is not None and own == ANY_TASK:
            return ("own",)
        if self.task is not None and not isinstance(self.task, str):
            return ("given",)
        return (self.task or own, self.n or getattr(module, "PROMPTS", DEFAULT_PROMPTS))

    def _prompts_of(self, key: Any) -> Any:
        from headscope.analyses._measurements import recall_capacity
        from headscope.probes.prompts import tasks

        if key in (("given",), ("own",)):
            return self.task if key == ("given",) else self.own_task
        if key not in self._prompts:
            (task, count), model = key, self.model
            if task == recall_capacity.TASK:
                self._prompts[key], self._capacity[key] = recall_capacity.draw(
                    model, count, self.seed
                )
                return self._prompts[key]
            self._prompts[key] = tasks.make(
                task, model.tokenizer, count, self.seed, vocab_size=model.vocabulary or None
            )
        return self._prompts[key]

    def _capture(self, key: Any, name: str) -> xr.Dataset:
        from headscope.probes import capture

        needs = self._needs[key]
        data = self._captures.get(key)
        if data is not None and needs.held_by(data):
            return data
        prompts = self._prompts_of(key)
        if prompts is None:
            own_needs = Needs.of(analyses.load(name))
            if data is not None and own_needs.held_by(data):
                return data
            missing = ", ".join(own_needs.stats + own_needs.keep)
            raise NotApplicable(
                f"capture: {name} needs {missing}; give the prompts to capture again"
            )
        arguments: dict[str, Any] = needs.arguments()
        self._captures[key] = capture(self.model, prompts, **arguments)
        return self._captures[key]

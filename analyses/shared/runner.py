"""The runner: supplies analyses with what their signatures name, and records provenance.

Analyses that run on the same prompts share one capture with the union of what they need.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import xarray as xr

from headscope import analyses
from headscope.analyses.shared import check
from headscope.kernels.refusal import Refused

if TYPE_CHECKING:
    from headscope.probes.model import Model
    from headscope.probes.task import Task

SUPPLIED = ("capture", "model", "prompts", "task", "sae")
# What a capture can be asked for besides statistics, by the constant that declares it.
DEFAULT_PROMPTS = 32

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Needs:
    """What an analysis asks of its capture."""

    stats: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    offsets: tuple[int, ...] = ()
    targets: tuple[str, ...] = ()

    @classmethod
    def of(cls, module: ModuleType) -> Needs:
        """Read the declarations of an analysis module."""
        return cls(
            tuple(module.NEEDS),
            tuple(getattr(module, "KEEP", ())),
            tuple(getattr(module, "OFFSETS", ())),
            tuple(getattr(module, "TARGETS", ())),
        )

    def __or__(self, other: Needs) -> Needs:
        """Return the union, in order of first mention."""
        return Needs(
            *(
                tuple(dict.fromkeys(getattr(self, name) + getattr(other, name)))
                for name in self.__dataclass_fields__
            )
        )

    def arguments(self) -> dict[str, tuple[Any, ...]]:
        """Return what to give ``capture``, which has offsets and targets of its own."""
        each = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: given for name, given in each.items() if given or name in ("stats", "keep")}

    def held_by(self, capture: xr.Dataset) -> bool:
        """Tell whether a capture holds all of it."""
        return (
            all(name in capture for name in self.stats + self.keep)
            and set(self.offsets) <= set(_coordinate(capture, "offset"))
            and set(self.targets) <= set(_coordinate(capture, "target"))
        )


def positionals(name: str) -> tuple[str, ...]:
    """List what the suite supplies to an analysis, in the order of its signature.

    >>> positionals("sinks")
    ('capture',)
    """
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.signature(analyses.load(name).run)
    return tuple(each.name for each in signature.parameters.values() if each.kind in kinds)


def execute(
    name: str,
    model: Model,
    prompts: Any = None,
    *,
    capture: xr.Dataset | None = None,
    task: Any = None,
    options: Mapping[str, Any] | None = None,
    n: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Run one analysis, supplying everything that its signature names.

    Parameters
    ----------
    name
        Name of the analysis.
    model
        Model that it looks at.
    prompts
        Texts, token ids or a task: the prompts of analyses that declare no task of their own.
    capture
        Capture of ``prompts``; used where it holds what the analysis needs.
    task
        Name of a task, path of a JSONL file, a task, or (where the analysis needs no answers) any
        prompts, instead of the analysis' own task.
    options
        Values of the analysis' options; text is converted to the type of the default.
    n
        Number of prompts made from the analysis' task; default: what the analysis declares.
    seed
        Seed of the task and, unless ``options`` says otherwise, of the analysis.
    progress
        Called with (name of the step, done, total).

    Returns
    -------
    The result of the analysis; its attributes carry the provenance of the capture and
    ``analysis``, ``title`` and ``options`` (JSON).

    Raises
    ------
    Refused
        For an unknown analysis or option, a bad value, or when there are no prompts to run on.

    Examples
    --------
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> result = execute("sinks", model, [[1, 5, 6, 7, 8, 9, 10, 11]], options={"epsilon": "0.8"})
    >>> result.attrs["analysis"], result.attrs["title"].split(":")[0]
    ('sinks', 'Attention sinks')
    """
    results = execute_many(
        (name,),
        model,
        prompts,
        capture=capture,
        task=task,
        options={name: options or {}},
        n=n,
        seed=seed,
        progress=progress,
    )
    result = next(results)[1]
    if isinstance(result, Refused):
        raise result
    return result


def execute_many(
    names: Iterable[str],
    model: Model,
    prompts: Any = None,
    *,
    capture: xr.Dataset | None = None,
    task: Any = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    n: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[tuple[str, xr.Dataset | Refused]]:
    """Run several analyses with one capture per prompt set; yield each result as it is ready.

    Names and options are checked before anything runs. The parameters are those of
    :func:`execute`, except that ``options`` is keyed by analysis.

    Yields
    ------
    The name of an analysis and its result, or the refusal of one that this model or these prompts
    do not suit; the others still run.
    """
    wanted = tuple(dict.fromkeys(names))
    given = options or {}
    stray = [each for each in given if each not in wanted]
    if stray:
        raise Refused(f"options: {stray[0]!r} is not among the analyses to run")
    settings = {each: _settings(each, given.get(each, {}), seed) for each in wanted}
    sets = PromptSets(model, prompts, capture, task, n, seed, progress)
    for each in wanted:
        sets.expect(each)
    return _run(wanted, settings, sets)


def _run(
    wanted: tuple[str, ...], settings: dict[str, dict[str, Any]], sets: PromptSets
) -> Iterator[tuple[str, xr.Dataset | Refused]]:
    for name in wanted:
        module = analyses.load(name)
        arguments = dict(settings[name])
        if "progress" in inspect.signature(module.run).parameters and sets.progress is not None:
            arguments["progress"] = partial(sets.progress, name)
        try:
            supplied = [sets.supply(name, what) for what in positionals(name)]
            result = module.run(*supplied, **arguments)
        except Refused as refusal:
            yield name, refusal
            continue
        result.attrs = {
            **result.attrs,
            "analysis": name,
            "title": analyses.summary(name),
            "options": json.dumps(settings[name], sort_keys=True),
        }
        yield name, result


def _settings(name: str, given: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return every option of an analysis with its value."""
    known = analyses.options(name)
    values = {option: each.default for option, each in known.items()}
    if "seed" in values:
        values["seed"] = seed
    return {**values, **check.parse(name, known, given)}


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
        progress: Progress | None,
    ) -> None:
        self.model, self.prompts, self.seed = model, prompts, seed
        self.task, self.n, self.progress = task, n, progress
        self._needs: dict[Any, Needs] = {}
        self._prompts: dict[Any, Any] = {None: prompts}
        self._captures: dict[Any, xr.Dataset] = {}
        if capture is not None:
            self._captures[None] = capture

    def expect(self, name: str) -> None:
        """Announce an analysis, so that its needs join the one capture of its prompt set."""
        unknown = [each for each in positionals(name) if each not in SUPPLIED]
        if unknown:
            raise Refused(
                f"{name}: run() asks for {unknown[0]!r}, which the suite does not supply; "
                f"it supplies {', '.join(SUPPLIED)}"
            )
        key = self._key(name)
        if key is None and self.prompts is None and None not in self._captures:
            raise Refused(f"prompts: {name} runs on your own prompts; give some")
        self._needs[key] = self._needs.get(key, Needs()) | Needs.of(analyses.load(name))

    def supply(self, name: str, what: str) -> Any:
        """Return one positional argument of an analysis."""
        key = self._key(name)
        asks = hasattr(analyses.load(name), "TASK")
        if asks and self.model.reads == "images":
            raise Refused(
                f"task: {name} asks in words, and {self.model.architecture} reads images; see sinks"
            )
        if asks and self.model.attention != "self":
            raise Refused(
                f"task: {name} asks for the next word of single texts, and {self.model.name} has "
                "an encoder and a decoder; see sinks"
            )
        if what == "model":
            return self.model
        if what == "capture":
            return self._capture(key, name)
        if what == "sae":
            raise Refused(f"sae: {name} asks for a trained dictionary and none was given")
        made = self._made(key, name)
        if what == "task" and not hasattr(made, "metric"):
            raise Refused(f"task: {name} needs answers; give a task, not plain prompts")
        return made

    def _key(self, name: str) -> Any:
        module = analyses.load(name)
        own = getattr(module, "TASK", None)
        if own is None or (self.task is not None and self.task is self.prompts):  # captured once
            return None
        if self.task is not None and not isinstance(self.task, str):
            return ("given",)
        return (self.task or own, self.n or getattr(module, "PROMPTS", DEFAULT_PROMPTS))

    def _made(self, key: Any, name: str) -> Any:
        if key not in self._prompts:
            if key == ("given",):
                self._prompts[key] = self.task
            else:
                self._prompts[key] = self._make(*key)
        return self._prompts[key]

    def _make(self, task: str, count: int) -> Task:
        from headscope.probes import tasks

        if self.model.tokenizer is None:
            raise Refused("tokenizer: a task needs one; load_model(..., tokenizer=...)")
        return tasks.make(task, tokenizer=self.model.tokenizer, n=count, seed=self.seed)

    def _capture(self, key: Any, name: str) -> xr.Dataset:
        needs = self._needs[key]
        held = self._captures.get(key)
        if held is not None and needs.held_by(held):
            return held
        prompts = self._made(key, name)
        if prompts is None:
            own = Needs.of(analyses.load(name))
            if held is not None and own.held_by(held):
                return held
            missing = ", ".join(own.stats + own.keep)
            raise Refused(f"capture: {name} needs {missing}; give the prompts to capture again")
        self._captures[key] = self._run(prompts, needs, name)
        return self._captures[key]

    def _run(self, prompts: Any, needs: Needs, name: str) -> xr.Dataset:
        from headscope.probes import capture

        arguments: dict[str, Any] = needs.arguments()
        if self.progress is not None:
            arguments["progress"] = partial(self.progress, f"{name}: capture")
        return capture(self.model, prompts, **arguments)


def _coordinate(capture: xr.Dataset, name: str) -> list[Any]:
    return list(capture[name].values.tolist()) if name in capture.coords else []

"""The main job: capture a model on prompts into a run folder, then analyse the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope import analyses, probes
from headscope.analyses._runtime import cost, runner
from headscope.analyses._runtime.inputs import positionals
from headscope.app.outcomes import Outcome, store
from headscope.app.prompt_files import read_prompts
from headscope.kernels.errors import InvalidInput
from headscope.probes.prompts import tasks
from headscope.probes.storage import run_folder
from headscope.probes.storage.run_folder import Run

if TYPE_CHECKING:
    from headscope.analyses._runtime.cost import Cost
    from headscope.probes.capturing.memory_estimate import Plan
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

Progress = Callable[[str, float, float], None]
Load = Callable[..., "Model"]


def capture_run(
    folder: Path,
    source: str,
    *,
    task: str | None = None,
    prompts: Path | Sequence[Any] | Task | None = None,
    number: int = 32,
    seed: int = 0,
    register: str | None = None,
    attention: str = "self",
    tokenizer: str | None = None,
    bos: bool | None = None,
    overwrite: bool = False,
    load: Load | None = None,
    progress: Progress | None = None,
) -> Run:
    """Capture the statistics that analyses need on one prompt set, into a new run folder.

    Parameters
    ----------
    folder
        Folder of the run, one only when everything has been captured; an interrupted capture of
        the same prompts goes on where it was.
    source, attention
        Model and its attention, as `load_model` takes them.
    task, number, seed, register
        A built-in task, the prompts drawn from it, their seed and their wording (as `tasks.make`
        takes it); its clean prompts are captured.
    prompts
        Instead of a task, a text file with a prompt a line (for a model of images the path of an
        image), or a JSONL file: objects with ``text``, pairs (``source``, ``target``), or a task of
        your own (``clean``, ``corrupted``, ``answers``, ``wrong``); or what such a file holds.
    tokenizer, bos
        As `load_model` takes them.
    overwrite
        Replace the run that the folder holds.
    load
        What loads the model, called as `load_model` is; the default is that.
    progress
        Called with (step, done, total).
    """
    run_folder.check(folder, replace=overwrite)
    source, tokenizer = absolute(source), tokenizer and absolute(tokenizer)
    loading = {"attention": attention, "tokenizer": tokenizer, "bos": bos}
    model, inputs = _open(source, task, prompts, number, seed, register, load, **loading)
    report = None if progress is None else partial(progress, "capture")
    if report is not None:
        report(0, 1)
    growing = run_folder.prepare(folder, replace=overwrite)
    captured = probes.capture(
        model, inputs, stats=needed(model), out=growing, overwrite=overwrite, progress=report
    )
    origin = str(prompts) if isinstance(prompts, Path) else ""
    count = len(captured["prompt"])
    options = {"number": count, "register": register, "source": source, **loading}
    return run_folder.create(
        folder, captured, prompts=origin,
        own_task=inputs if task is None and hasattr(inputs, "metric") else None,
        options=options, replace=overwrite, file=growing,
    )  # fmt: skip


def plan_run(folder: Path, source: str, *, overwrite: bool = False, **inputs: Any) -> Plan:
    """Return what `capture_run` would need, without running it; the parameters are the same."""
    run_folder.check(folder, replace=overwrite)
    model, prompts = _open(source, **inputs)
    return probes.plan(model, prompts, stats=needed(model), out=folder / run_folder.GROWING)


def _open(
    source: str,
    task: str | None = None,
    prompts: Path | Sequence[Any] | Task | None = None,
    number: int = 32,
    seed: int = 0,
    register: str | None = None,
    load: Load | None = None,
    **loading: Any,
) -> tuple[Model, Any]:
    """Load a model and its prompts; what can be refused without the model is refused first."""
    if (task is None) == (prompts is None):
        raise InvalidInput("prompts: give either --task NAME or --prompts FILE")
    if task is None and register is not None:
        raise InvalidInput("register: the wording of a built-in task; give --task, or leave it out")
    if task is not None:
        tasks.load(task)
    texts = read_prompts(prompts) if isinstance(prompts, Path) else prompts
    model = (load or probes.load_model)(source, **loading)
    if task is None:
        return model, texts
    return model, tasks.make(task, model.tokenizer, number, seed, register=register)


def absolute(source: str) -> str:
    """Return the absolute path of a folder or file, so that a run finds its model from anywhere."""
    name, at, checkpoint = source.rpartition("@")
    for path, suffix in ((source, ""), (name, at + checkpoint)):
        if path and Path(path).expanduser().exists():
            return f"{Path(path).expanduser().resolve()}{suffix}"
    return source


def needed(model: Model) -> tuple[str, ...]:
    """List the statistics that analyses of a run's own prompts read, and the default ones."""
    from headscope.probes.capturing.options import DEFAULT, applicable_stats

    modules = [analyses.load(name) for name in analyses.names()]
    needs = [stat for module in modules if not hasattr(module, "TASK") for stat in module.NEEDS]
    # Whole maps are made again for the few prompts that an analysis reads.
    stats = dict.fromkeys((*DEFAULT, *(stat for stat in needs if stat != "pattern")))
    return applicable_stats(tuple(stats), model)


def open_model(run: Run, source: str | None = None, load: Load | None = None) -> Model:
    """Load the model of a run again, from where it is now, and refuse another one."""
    options = run.manifest["options"]
    model = (load or probes.load_model)(
        source or options.get("source", run.manifest["model"]),
        attention=run.manifest.get("attention", "self"),
        tokenizer=options.get("tokenizer"),
        bos=options.get("bos"),
    )
    if model.revision != run.manifest["revision"]:
        raise InvalidInput(
            f"model: {model.name} is at revision {model.revision} but {run.path} was captured at "
            f"{run.manifest['revision']}; capture again"
        )
    return model


def analyze_run(
    run: Run,
    names: Sequence[str],
    *,
    task: str | None = None,
    number: int | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    source: str | None = None,
    register: str | None = None,
    dtype: str = "float32",
    sae: Path | None = None,
    load: Load | None = None,
    announce: Callable[[Sequence[Cost]], None] | None = None,
    progress: Progress | None = None,
) -> dict[str, Outcome]:
    """Run analyses on a captured run, keeping each result as soon as it is there.

    Parameters
    ----------
    task, number
        Task (a name, or a JSONL file) and its prompts for analyses that use one; the default is
        what each analysis declares. Those that ask any task with answers ask the run's own, where
        it was captured on one.
    options
        Options by analysis and name.
    source
        Where the model is now, if it is no longer where it was captured.
    register
        Wording of built-in tasks, as `tasks.make` takes it; the default is that of the run.
    dtype
        Number format of the sweeps of ablations, ``float32`` or ``bfloat16``.
    sae
        Folder of a sparse autoencoder, as SAELens writes it, for the analyses that take one.
    load
        What loads the model, called as `load_model` is; the default is that.
    announce
        Called with what the analyses are expected to cost, before the first of them runs.
    progress
        Called with (step, done, total).

    Returns
    -------
    The result of every analysis, or why there is none: `NotApplicable` or `UnsupportedModel` where
    it does not suit the model, any other exception for a bug in it, whose traceback is then in
    `Run.error_file`. The report says it, too, unless the run holds an earlier result. Anything else
    that has to be mended first is raised; what was finished before is kept.
    """
    selected = list(dict.fromkeys(names))
    results: dict[str, Outcome] = {}

    def numbered(step: str, done: float, total: float) -> None:
        if progress is not None:
            progress(f"{len(results) + 1}/{len(selected)} {step}", done, total)

    register = register or run.manifest["options"].get("register")
    autoencoder = None
    if sae is not None:
        from headscope.analyses._sparse_autoencoders import saelens

        autoencoder = saelens.load(sae)
    model, prompts = open_model(run, source, load), run.prompts()
    arguments: dict[str, Any] = {"task": task, "options": options, "n": number}
    arguments["own_task"] = run.own_task()
    arguments["seed"] = run.manifest["seed"] if isinstance(run.manifest["seed"], int) else 0
    with tasks.wording(register):
        outcomes = runner.execute_many(
            selected,
            model,
            prompts,
            capture=run.capture,
            progress=numbered,
            effects=run.effects,
            dtype=dtype,
            sae=autoencoder,
            **arguments,
        )
        if announce is not None:
            announce(cost.estimate(selected, model, prompts, capture=run.capture, **arguments))
        for name in selected:
            _, outcome = next(outcomes)
            store(run, name, outcome)
            results[name] = outcome
    return results


def quick() -> list[str]:
    """List the analyses that need no more than a capture, or that declare `FEW_PASSES`."""
    return [
        name
        for name in analyses.names()
        if positionals(name) == ("capture",) or hasattr(analyses.load(name), "FEW_PASSES")
    ]


def parse_settings(settings: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read NAME.OPTION=VALUE into options by analysis.

    >>> parse_settings(["sinks.epsilon=0.8"])
    {'sinks': {'epsilon': '0.8'}}
    """
    options: dict[str, dict[str, str]] = {}
    for setting in settings:
        target, equals, value = setting.partition("=")
        name, dot, option = target.partition(".")
        if not (equals and dot and name and option):
            raise InvalidInput(
                f"--set: {setting!r} is not NAME.OPTION=VALUE, such as sinks.epsilon=0.8"
            )
        options.setdefault(name, {})[option] = value
    return options

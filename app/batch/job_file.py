"""The job file: read with all of its errors and their lines, before anything runs."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from headscope import analyses
from headscope.analyses._runtime.options import Option, parse
from headscope.app.batch.job import Job, mismatched, unsuited
from headscope.app.batch.schema import Entry, JobFields, ModelSpec, TaskSpec
from headscope.app.batch.yaml_errors import Location, MarkedFile, near
from headscope.kernels.errors import HeadscopeError, InvalidInput
from headscope.probes.prompts import tasks

ALL = "all"
Spec = TypeVar("Spec", ModelSpec, TaskSpec)


def read_job(path: Path) -> Job:
    """Read a job file, or refuse it with everything that is wrong in it, at once."""
    file = MarkedFile(path)
    data: Any = file.data
    every = isinstance(data, dict) and data.get("analyses") == ALL
    if every:
        data["analyses"] = analyses.names()
    fields = _fields(file)
    models = _entries(file, "models", ModelSpec, fields.models)
    questions = {
        at: task.model_copy(
            update={
                "number": task.number or fields.number,
                "wording": task.wording or fields.wording,
                "options": _task_options(file, (*at, "options"), task),
            }
        )
        for at, task in _entries(file, "tasks", TaskSpec, fields.tasks).items()
    }
    names = _names(file, fields.analyses)
    options = _options(file, fields.options, list(names.values()))
    _check_duplicates(file, "seeds", fields.seeds)
    _check_mismatches(file, models, questions, {} if every else names)
    file.check()
    return Job(
        title=fields.title or path.stem,
        models=tuple(models.values()),
        tasks=tuple(questions.values()),
        analyses=tuple(names.values()),
        seeds=tuple(fields.seeds),
        options=options,
        shard=fields.shard,
        threads=fields.threads,
        batch_tokens=fields.batch_tokens,
        content=file.content,
    )


def _valid(
    file: MarkedFile, kind: type[Entry], values: Any, at: Location = ()
) -> tuple[Any, set[int | str]]:
    """Read values as a model, or note what is wrong and name the fields."""
    try:
        return kind.model_validate(values, context=file.path.parent), set()
    except ValidationError as error:
        file.add_errors(error, kind, at)
        return None, {detail["loc"][0] for detail in error.errors() if len(detail["loc"]) == 1}


def _fields(file: MarkedFile) -> JobFields:
    """Read the fields of the job; a wrong one has its default, so that the rest is checked."""
    fields: JobFields | None
    fields, wrong = _valid(file, JobFields, file.data)
    if fields is None:
        data = file.data if isinstance(file.data, dict) else {}
        valid = {name: data[name] for name in data.keys() & JobFields.model_fields.keys() - wrong}
        lists: dict[str, Any] = {"models": [], "tasks": [], "analyses": []}
        fields = JobFields.model_construct(**lists | valid)
    return fields


def _entries(
    file: MarkedFile, field: str, kind: type[Spec], items: Sequence[Any]
) -> dict[Location, Spec]:
    """Read the models or the tasks, whose names must differ."""
    entries: dict[Location, Spec] = {}
    first: dict[str, Location] = {}
    for index, item in enumerate(items):
        at: Location = (field, index)
        entry, _ = _valid(file, kind, item, at)
        if entry is not None:
            entries[at] = entry
        main = field.removesuffix("s")
        label = item.get("name", item.get(main)) if isinstance(item, dict) else item
        label = entry.label if isinstance(entry, TaskSpec) else label
        if isinstance(label, str) and label in first:
            line = file.line(first[label])
            file.add(at, f"{field}: {label!r} is in line {line}, too; give it a `name:`")
        elif isinstance(label, str):
            first[label] = at
    return entries


def _task_options(file: MarkedFile, at: Location, task: TaskSpec) -> dict[str, Any]:
    if not task.options:
        return {}
    allowed = {
        parameter.name: Option(parameter.default, "")
        for parameter in inspect.signature(tasks.load(task.task).generate).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    options = _values(file, at, f"task {task.task}", allowed, task.options)
    try:
        # Every word of the lists will do: what no tokenizer can mend is found here.
        tasks.make(task.task, n=1, **options)
    except HeadscopeError as error:
        file.add(at, f"task {task.task}: {error}")
    return options


def _options(
    file: MarkedFile, options: Mapping[str, Any], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    read = {}
    for name, values in options.items():
        at: Location = ("options", name)
        if analyses.RENAMED.get(name, name) not in names:
            file.add(at, f"options: {name!r} is not among the analyses{near(name, names)}")
        elif not isinstance(values, dict):
            file.add(at, f"{name}: give names with values, `name: value`")
        else:
            current = analyses.current(name)
            read[current] = _values(file, at, name, analyses.options(current), values)
            if read[current].pop("seed", None) is not None:
                file.add(at, f"{name}: its seed is that of the cell; give `seeds:` of the job")
    return read


def _values(
    file: MarkedFile,
    at: Location,
    owner: str,
    declared: Mapping[str, Option],
    values: Mapping[str, Any],
) -> dict[str, Any]:
    """Read options by name, each of the type of its default and within its bounds."""
    options = {}
    for name, value in values.items():
        if name not in declared:
            file.add((*at, name), f"{owner}: {name!r} is unknown{near(name, declared)}", name=True)
            continue
        try:
            if not isinstance(value, str | int | float):
                raise InvalidInput(f"{name}: give one value, or leave the option out")
            free = declared[name].default is None
            options[name] = value if free else parse(owner, declared, {name: value})[name]
        except HeadscopeError as error:
            file.add((*at, name), f"{owner}: {error}")
    return options


def _names(file: MarkedFile, names: Sequence[Any]) -> dict[Location, str]:
    """Read the names of the analyses, in order; earlier names are good, too."""
    _check_duplicates(file, "analyses", names)
    locations: dict[Location, str] = {}
    for index, name in enumerate(names):
        at: Location = ("analyses", index)
        if name not in {*analyses.names(), *analyses.RENAMED}:
            file.add(at, f"analyses: no {name!r}{near(str(name), analyses.names())}")
        elif analyses.current(name) not in locations.values():
            locations[at] = analyses.current(name)
    return locations


def _check_duplicates(file: MarkedFile, field: str, values: Sequence[Any]) -> None:
    """Record values of a list that are there twice; 0 and false are two values."""
    typed = [(type(value), value) for value in values]
    for index, value in enumerate(typed):
        if value in typed[:index]:
            file.add((field, index), f"{field}: {value[1]!r} is there twice")


def _check_mismatches(
    file: MarkedFile,
    models: Mapping[Location, ModelSpec],
    questions: Mapping[Location, TaskSpec],
    names: Mapping[Location, str],
) -> None:
    """Record what cannot run together, at the task or the analysis to be removed."""
    for model in models.values():
        for at, task in questions.items():
            reason = mismatched(model, task)
            if reason:
                file.add(at, f"task: {reason}")
            for location, name in names.items():
                reason = unsuited(name, model, task)
                if reason:
                    file.add(location, f"analyses: {reason}")

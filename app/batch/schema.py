"""Job file: read with all of its errors, each with its line and column, before anything runs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from headscope import analyses
from headscope.analyses._runtime import options as check
from headscope.analyses._runtime.options import Option
from headscope.app.batch.job import Job, Questions, Subject, mismatched, unsuited
from headscope.app.batch.yaml_errors import Reader, near
from headscope.app.prompt_files import read_prompts
from headscope.kernels.errors import HeadscopeError, InvalidInput

FIELDS = (
    "title", "models", "tasks", "analyses", "options", "seeds", "number", "shard", "threads",
    "batch_tokens",
)  # fmt: skip
NEEDED = ("models", "tasks", "analyses")
MODEL = ("model", "name", "attention", "device", "dtype", "tokenizer")
TASK = ("task", "prompts", "texts", "name", "number", "options")
KINDS_OF_TASK = TASK[:3]
ATTENTIONS = ("self", "encoder", "decoder", "cross")
DTYPES = ("float32", "bfloat16", "float16")
DEVICE = re.compile(r"cpu|cuda(:\d+)?")
NUMBER = 32
ALL = "all"

Entry = TypeVar("Entry", Subject, Questions)


def read_job(path: Path) -> Job:
    """Read a job file.

    Raises
    ------
    HeadscopeError
        When it cannot be read, and for everything that is wrong in it, at once.
    """
    reader = Reader(path)
    data, root = reader.root()
    fields = reader.mapping(root, "job", FIELDS)
    for name in NEEDED:
        if name not in fields and isinstance(root, yaml.MappingNode):
            reader.refuse(root, f"{name}: missing; a job needs {', '.join(NEEDED)}")

    def count(name: str, default: int) -> int:
        return reader.count(fields[name], name) if name in fields else default

    number = count("number", NUMBER)
    subjects = _entries(reader, fields.get("models"), "models", lambda one: _model(reader, one))
    tasks = _entries(reader, fields.get("tasks"), "tasks", lambda one: _task(reader, one, number))
    named, every = _analyses(reader, fields.get("analyses"))
    options = _options(reader, fields.get("options"), [name for _, name in named])
    seeds = _seeds(reader, fields.get("seeds"))
    _match(reader, subjects, tasks, [] if every else named)
    job = Job(
        title=reader.text(fields["title"], "title") if "title" in fields else path.stem,
        subjects=tuple(one for _, one in subjects),
        tasks=tuple(one for _, one in tasks),
        analyses=tuple(name for _, name in named),
        seeds=tuple(seeds),
        options=options,
        shard=count("shard", 0),
        threads=count("threads", 1),
        batch_tokens=count("batch_tokens", 8192),
        text=data,
    )
    reader.check()
    return job


def _entries(
    reader: Reader,
    node: yaml.Node | None,
    what: str,
    read: Callable[[yaml.Node], Entry | None],
) -> list[tuple[yaml.Node, Entry]]:
    """Read a list of models or tasks, whose names must differ."""
    found: list[tuple[yaml.Node, Entry]] = []
    for item in reader.items(node, what) if node is not None else ():
        entry = read(item)
        if entry is None:
            continue
        twin = next((one for one, other in found if other.label == entry.label), None)
        if twin is not None:
            line = twin.start_mark.line + 1
            reader.refuse(
                item, f"{what}: {entry.label!r} is in line {line}, too; give it a `name:`"
            )
        else:
            found.append((item, entry))
    return found


def _model(reader: Reader, node: yaml.Node) -> Subject | None:
    fields = {"model": node}
    if isinstance(node, yaml.MappingNode):
        fields = reader.mapping(node, "model", MODEL)
        if "model" not in fields:
            reader.refuse(node, "model: missing; name the model, `model: headscope/bundled`")
            return None
    given = {name: reader.text(value, name) for name, value in fields.items()}
    source = given.pop("model")
    label = given.pop("name", source)
    if not source or not label:
        return None
    for name, known in (("attention", ATTENTIONS), ("dtype", DTYPES)):
        if given.get(name) and given[name] not in known:
            reader.refuse(fields[name], f"{name}: no {given[name]!r}{near(given[name], known)}")
    if given.get("device") and not DEVICE.fullmatch(given["device"]):
        reader.refuse(fields["device"], f"device: no {given['device']!r}; give cpu, cuda or cuda:N")
    place = _place(reader.file.parent, source)
    try:
        _find(place)
    except HeadscopeError as refusal:
        reader.refuse(fields["model"], str(refusal))
    if given.get("tokenizer"):
        given["tokenizer"] = _place(reader.file.parent, given["tokenizer"])
    return Subject(label, place, **given)


def _place(folder: Path, source: str) -> str:
    """Find a model that is named from where the job file lies."""
    base, at, rest = source.partition("@")
    return f"{(folder / base).absolute()}{at}{rest}" if (folder / base).is_dir() else source


def _find(source: str) -> None:
    """Refuse a model that is not there, without loading it."""
    from headscope.probes.bundled import BUNDLED
    from headscope.probes.models.model_source import locate

    place = locate(source)
    if Path(place.path).is_dir():
        return
    if source.startswith("headscope/"):
        raise InvalidInput(
            f"model: no {source!r} comes with headscope{near(source, tuple(BUNDLED))}"
        )
    from huggingface_hub import HfApi, try_to_load_from_cache

    name, revision = place.path, place.revision
    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        return
    try:
        HfApi().model_info(name, revision=revision, timeout=5)
    except Exception as error:
        raise InvalidInput(
            f"model: {source!r} is no folder and not in the local cache, and the hub does not "
            f"have it or cannot be reached{near(source, tuple(BUNDLED))}"
        ) from error


def _task(reader: Reader, node: yaml.Node, number: int) -> Questions | None:
    fields = {"task": node}
    if isinstance(node, yaml.MappingNode):
        fields = reader.mapping(node, "task", TASK)
    kinds = [name for name in KINDS_OF_TASK if name in fields]
    if len(kinds) != 1:
        reader.refuse(node, "task: give one of `task: NAME`, `prompts: FILE` and `texts: [...]`")
        return None
    (kind,) = kinds
    label = reader.text(fields["name"], "name") if "name" in fields else ""
    for name in ("number", "options"):
        if name in fields and kind != "task":
            reader.refuse(fields[name], f"{name}: only of a built-in task; {kind} are all used")
    if kind == "texts":
        own: Any = [reader.text(one, "texts") for one in reader.items(fields[kind], "texts")]
        return Questions(label or "texts", own=own) if own and all(own) else None
    given = reader.text(fields[kind], kind)
    if not given:
        return None
    if kind == "prompts":
        try:
            return Questions(
                label or Path(given).stem, own=read_prompts(reader.file.parent / given)
            )
        except HeadscopeError as refusal:
            reader.refuse(fields[kind], str(refusal))
            return None
    number = reader.count(fields["number"], "number") if "number" in fields else number
    return _built_in(reader, fields, given, label, number)


def _built_in(
    reader: Reader, fields: dict[str, yaml.Node], name: str, label: str, number: int
) -> Questions | None:
    from headscope.probes.prompts import tasks

    if name not in tasks.names():
        hint = "; a file of your own goes into `prompts:`" if name.endswith(".jsonl") else ""
        reader.refuse(fields["task"], f"task: no {name!r}{hint or near(name, tasks.names())}")
        return None
    options: dict[str, Any] = {}
    if "options" in fields:
        generate = tasks.load(name).generate
        known = {
            each.name: Option(each.default, "")
            for each in inspect.signature(generate).parameters.values()
            if each.kind is each.KEYWORD_ONLY
        }
        options = _values(reader, fields["options"], f"task {name}", known)
        try:
            # Every word of the lists will do: what no tokenizer can mend is found here.
            tasks.make(name, n=1, **options)
        except HeadscopeError as refusal:
            reader.refuse(fields["options"], f"task {name}: {refusal}")
    return Questions(label or name, name, number, options)


def _values(reader: Reader, node: yaml.Node, what: str, known: dict[str, Option]) -> dict[str, Any]:
    """Read options by name, each of the type of its default."""
    found = {}
    for name, value in reader.mapping(node, what, tuple(known)).items():
        before = len(reader.problems)
        given = reader.value(value)
        if len(reader.problems) > before:
            continue
        try:
            if given is None:
                raise InvalidInput(f"{name}: there is no value; give one, or leave the option out")
            if known[name].default is not None:
                given = check.parse(what, known, {name: given})[name]
            elif not isinstance(given, str | int | float):
                raise InvalidInput(f"{name}: {given!r} is no number and no text")
            found[name] = given
        except HeadscopeError as refusal:
            reader.refuse(value, f"{what}: {refusal}")
    return found


def _analyses(reader: Reader, node: yaml.Node | None) -> tuple[list[tuple[yaml.Node, str]], bool]:
    if node is None:
        return [], False
    known = analyses.names()
    if isinstance(node, yaml.ScalarNode) and node.value == ALL:
        return [(node, name) for name in known], True
    found: list[tuple[yaml.Node, str]] = []
    for item in reader.items(node, "analyses"):
        name = reader.text(item, "analyses")
        if name and name not in known:
            reader.refuse(item, f"analyses: no {name!r}{near(name, known)}")
        elif name in [other for _, other in found]:
            reader.refuse(item, f"analyses: {name!r} is there twice")
        elif name:
            found.append((item, name))
    return found, False


def _options(
    reader: Reader, node: yaml.Node | None, wanted: Sequence[str]
) -> dict[str, dict[str, Any]]:
    if node is None:
        return {}
    found = {}
    for name, value in reader.mapping(node, "options").items():
        if name not in wanted:
            reader.refuse(value, f"options: {name!r} is not among the analyses{near(name, wanted)}")
            continue
        known = analyses.options(name)
        found[name] = _values(reader, value, name, known)
        if found[name].pop("seed", None) is not None:
            reader.refuse(value, f"{name}: its seed is that of the cell; give `seeds:` of the job")
    return found


def _seeds(reader: Reader, node: yaml.Node | None) -> list[int]:
    if node is None:
        return [0]
    found: list[int] = []
    for item in reader.items(node, "seeds"):
        before = len(reader.problems)
        seed = reader.count(item, "seeds", 0)
        if len(reader.problems) > before:
            continue
        if seed in found:
            reader.refuse(item, f"seeds: {seed} is there twice")
        found.append(seed)
    return found


def _match(
    reader: Reader,
    subjects: list[tuple[yaml.Node, Subject]],
    tasks: list[tuple[yaml.Node, Questions]],
    named: list[tuple[yaml.Node, str]],
) -> None:
    """Note what cannot run together, at the task or the analysis that has to go."""
    for _, subject in subjects:
        for at, questions in tasks:
            wrong = mismatched(subject, questions)
            if wrong:
                reader.refuse(at, f"task: {wrong}")
            for node, name in named:
                reason = unsuited(name, subject, questions)
                if reason:
                    reader.refuse(node, f"analyses: {reason}")

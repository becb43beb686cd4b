"""What a batch runs: models × tasks × analyses × seeds, as cells in groups."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from itertools import product
from platform import python_version
from typing import Any
from urllib.parse import quote

from headscope import analyses
from headscope.analyses._runtime import inputs
from headscope.app.batch.schema import ModelSpec, TaskSpec

LIBRARIES = ("headscope", "torch", "transformers", "numpy", "scipy", "scikit-learn", "pyarrow")


@dataclass(frozen=True)
class Group:
    """Cells of one model, task and seed: they share the prompts, the capture and a report."""

    model: ModelSpec
    task: TaskSpec
    seed: int
    analyses: tuple[str, ...]

    @property
    def subfolder(self) -> str:
        """Folder of the group, in the style of Hive."""
        names = (("model", self.model.name), ("task", self.task.label), ("seed", self.seed))
        return "/".join(f"{name}={quote(str(value), safe='')}" for name, value in names)

    @property
    def title(self) -> str:
        """The group in words."""
        return f"{self.model.name} · {self.task.label} · seed {self.seed}"


@dataclass(frozen=True)
class Job:
    """Models × tasks × analyses × seeds; analyses, and their options, in the order of the job file.

    ``title`` is the heading of the index. ``shard`` are the prompts of one capture, at most; 0
    captures all prompts of a cell at once. ``threads`` of torch in one cell and ``batch_tokens`` in
    one forward pass of a capture are part of what makes numbers equal to the last bit. ``content``
    are the bytes of the job file.
    """

    title: str
    models: tuple[ModelSpec, ...]
    tasks: tuple[TaskSpec, ...]
    analyses: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    shard: int = 0
    threads: int = 1
    batch_tokens: int = 8192
    content: bytes = b""

    @property
    def groups(self) -> tuple[Group, ...]:
        """The cells by model, task and seed, in order; a group without any cell is left out."""
        groups = []
        for model, task, seed in product(self.models, self.tasks, self.seeds):
            names = tuple(name for name in self.analyses if not unsuited(name, model, task))
            if names:
                groups.append(Group(model, task, seed, names))
        return tuple(groups)

    def identity(self) -> dict[str, Any]:
        """Return, as JSON, all that the results depend on."""
        return {
            "format": "headscope-batch-1",
            "title": self.title,
            "models": [
                model.model_dump(exclude={"model"}, exclude_none=True) for model in self.models
            ],
            "tasks": [task.describe() for task in self.tasks],
            "analyses": list(self.analyses),
            "options": {name: dict(values) for name, values in self.options.items()},
            "seeds": list(self.seeds),
            "shard": self.shard,
            "threads": self.threads,
            "batch_tokens": self.batch_tokens,
            "versions": versions(),
        }

    def cell_id(self, group: Group, analysis: str) -> str:
        """Digest what a cell depends on: itself, and the analyses that it shares a capture with."""
        cell = replace(
            self, title="", models=(group.model,), tasks=(group.task,), analyses=(analysis,),
            seeds=(group.seed,), options={analysis: self.options.get(analysis, {})},
        )  # fmt: skip
        identity = json.dumps([cell.identity(), list(group.analyses)], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()[:16]


@cache
def versions() -> dict[str, str]:
    """Return the versions that the numbers are computed with."""
    return {"python": python_version(), **{name: version(name) for name in LIBRARIES}}


def unsuited(analysis: str, model: ModelSpec, task: TaskSpec) -> str:
    """Return why an analysis cannot run on a model and a task; "" where it may.

    >>> unsuited("importance", ModelSpec(model="m"), TaskSpec(texts=["a text"], name="mine"))
    'importance needs answers, and mine holds plain prompts'
    """
    needed = inputs.positionals(analysis)
    if "task" in needed and not task.answered:
        return f"{analysis} needs answers, and {task.label} holds plain prompts"
    if hasattr(analyses.load(analysis), "TASK") and model.attention != "self":
        return (
            f"{analysis} asks for the next word of single texts, and {model.name} is run with "
            f"its {model.attention} attention"
        )
    return ""


def mismatched(model: ModelSpec, task: TaskSpec) -> str:
    """Return why a task has no prompts for a model; "" where nothing is known against it."""
    if model.attention in ("decoder", "cross") and not task.paired:
        return (
            f"{task.label} holds single texts, and the {model.attention} attention of "
            f"{model.name} reads pairs (JSONL lines of source and target)"
        )
    if task.paired and model.attention == "self":
        return f"{task.label} holds pairs, and {model.name} reads single texts"
    return ""

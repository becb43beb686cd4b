"""Job: what a batch runs, read from a job file and checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from itertools import product
from platform import python_version
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from headscope.kernels.errors import InvalidInput

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

LIBRARIES = ("headscope", "torch", "transformers", "numpy", "scipy", "scikit-learn", "pyarrow")


@dataclass(frozen=True)
class Subject:
    """A model of a job.

    Attributes
    ----------
    label
        Its name in tables, reports and folders; as the job file writes it.
    source
        What `load_model` takes.
    attention, device, dtype, tokenizer
        As `load_model`.
    """

    label: str
    source: str
    attention: str = "self"
    device: str | None = None
    dtype: str | None = None
    tokenizer: str | None = None

    def load(self) -> Model:
        """Load it; it is called by its label, so that no file depends on where the model lies."""
        from headscope.probes import load_model

        model = load_model(self.source, self.device, self.dtype, self.tokenizer, self.attention)
        return replace(model, name=self.label)


@dataclass(frozen=True)
class Questions:
    """A task of a job: a task of the registry, or prompts of your own.

    Attributes
    ----------
    label
        Its name in tables, reports and folders.
    task, number, options
        Name of a built-in task, the prompts drawn from it, and its options.
    own
        Instead, prompts of your own: texts, pairs, or a task from a file.
    """

    label: str
    task: str = ""
    number: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    own: Any = None

    @property
    def answered(self) -> bool:
        """Whether answers are known, so that analyses can score them."""
        return bool(self.task) or hasattr(self.own, "metric")

    @property
    def paired(self) -> bool:
        """Whether its prompts are pairs, for the decoder of an encoder–decoder model."""
        from headscope.probes.models.pair import Pair

        return isinstance(self.own, list) and isinstance(self.own[0], Pair)

    def __len__(self) -> int:
        return self.number if self.task else len(self.own)

    def draw(self, model: Model, seed: int) -> Any:
        """Make the prompts, in the words of a model.

        Raises
        ------
        InvalidInput
            For a task and a model without a tokenizer, and as the task.
        """
        from headscope.probes.prompts import tasks

        if not self.task:
            return self.own
        if model.tokenizer is None:
            raise InvalidInput("tokenizer: a task needs one; give the model a `tokenizer:`")
        return tasks.make(self.task, model.tokenizer, n=self.number, seed=seed, **self.options)

    def describe(self) -> dict[str, Any]:
        """Say what it is, own prompts by their digest."""
        told = {"task": self.task, "number": self.number, "options": dict(self.options)}
        own = hashlib.sha256(repr(self.own).encode()).hexdigest()
        return {"name": self.label, **(told if self.task else {"prompts_sha256": own})}


@dataclass(frozen=True)
class Group:
    """Cells of one model, task and seed: they share the prompts, the capture and a report."""

    subject: Subject
    questions: Questions
    seed: int
    analyses: tuple[str, ...]

    @property
    def place(self) -> str:
        """Folder of the group, in the style of Hive."""
        names = (("model", self.subject.label), ("task", self.questions.label), ("seed", self.seed))
        return "/".join(f"{name}={quote(str(value), safe='')}" for name, value in names)

    @property
    def title(self) -> str:
        """The group in words."""
        return f"{self.subject.label} · {self.questions.label} · seed {self.seed}"


@dataclass(frozen=True)
class Job:
    """Models × tasks × analyses × seeds.

    Attributes
    ----------
    title
        Heading of the index.
    subjects, tasks, analyses, seeds
        What is combined; analyses in the order of the job file.
    options
        Options by analysis.
    shard
        Prompts of one capture, at most; 0 captures all prompts of a cell at once.
    threads
        Threads of torch in one cell; part of what makes numbers equal to the last bit.
    batch_tokens
        Tokens in one forward pass of a capture; likewise.
    text
        The job file.
    """

    title: str
    subjects: tuple[Subject, ...]
    tasks: tuple[Questions, ...]
    analyses: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    shard: int = 0
    threads: int = 1
    batch_tokens: int = 8192
    text: bytes = b""

    @property
    def groups(self) -> tuple[Group, ...]:
        """The cells by model, task and seed, in order; a group without any cell is left out."""
        found = (
            Group(
                subject,
                questions,
                seed,
                tuple(one for one in self.analyses if not unsuited(one, subject, questions)),
            )
            for subject, questions, seed in product(self.subjects, self.tasks, self.seeds)
        )
        return tuple(group for group in found if group.analyses)

    def identity(self) -> dict[str, Any]:
        """Say what the results depend on, as JSON can hold it."""
        return {
            "format": "headscope-batch-1",
            "title": self.title,
            "models": [
                {name: value for name, value in vars(one).items() if name != "source" and value}
                for one in self.subjects
            ],
            "tasks": [one.describe() for one in self.tasks],
            "analyses": list(self.analyses),
            "options": {name: dict(each) for name, each in self.options.items()},
            "seeds": list(self.seeds),
            "shard": self.shard,
            "threads": self.threads,
            "batch_tokens": self.batch_tokens,
            "versions": versions(),
        }

    def cell_id(self, group: Group, analysis: str) -> str:
        """Digest what a cell depends on: itself, and the analyses that it shares a capture with."""
        one = replace(
            self, title="", subjects=(group.subject,), tasks=(group.questions,),
            analyses=(analysis,), seeds=(group.seed,),
            options={analysis: self.options.get(analysis, {})},
        )  # fmt: skip
        told = json.dumps([one.identity(), list(group.analyses)], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]


@cache
def versions() -> dict[str, str]:
    """Say what the numbers are made with."""
    return {"python": python_version(), **{name: version(name) for name in LIBRARIES}}


def unsuited(analysis: str, subject: Subject, questions: Questions) -> str:
    """Say why an analysis cannot run on a model and a task; "" where nothing is known against it.

    Examples
    --------
    >>> unsuited("importance", Subject("m", "m"), Questions("mine", own=["a text"]))
    'importance needs answers, and mine holds plain prompts'
    """
    from headscope import analyses
    from headscope.analyses._runtime import inputs

    needed = inputs.positionals(analysis)
    if "sae" in needed:
        return f"{analysis} needs a trained dictionary, which a job file cannot give"
    if "task" in needed and not questions.answered:
        return f"{analysis} needs answers, and {questions.label} holds plain prompts"
    if hasattr(analyses.load(analysis), "TASK") and subject.attention != "self":
        return (
            f"{analysis} asks for the next word of single texts, and {subject.label} is run with "
            f"its {subject.attention} attention"
        )
    return ""


def mismatched(subject: Subject, questions: Questions) -> str:
    """Say why a task has no prompts for a model; "" where nothing is known against it."""
    decoding = subject.attention in ("decoder", "cross")
    if decoding and not questions.paired:
        return (
            f"{questions.label} holds single texts, and the {subject.attention} attention of "
            f"{subject.label} reads pairs (JSONL lines of source and target)"
        )
    if questions.paired and subject.attention == "self":
        return f"{questions.label} holds pairs, and {subject.label} reads single texts"
    return ""

"""What a job file may hold: models of its entries, which say what is wrong with a value."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PrivateAttr,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from headscope import probes
from headscope.app.batch.yaml_errors import near
from headscope.app.prompt_files import read_prompts
from headscope.kernels.errors import InvalidInput
from headscope.probes import constructed
from headscope.probes.bundled import BUNDLED
from headscope.probes.models.model_source import locate
from headscope.probes.models.pair import Pair
from headscope.probes.prompts import tasks

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

Text = Annotated[str, StringConstraints(pattern=r"\S")]
Count = Annotated[int, Field(ge=1)]
# Models of pydantic have a `register` already.
Register = Annotated[Literal["plain", "natural"] | None, Field(alias="register")]
Items = Annotated[list[Any], Field(min_length=1)]


def _folder(info: ValidationInfo) -> Path:
    """Return the folder of the job file, which relative paths start from."""
    folder: Path = info.context  # type: ignore[assignment]
    return folder


class Entry(BaseModel):
    """Names with values; nothing else, and every value of its own type."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ModelSpec(Entry):
    """A model of a job, as `load_model` takes it; a folder is named from where the job file lies.

    ``name`` is its name in tables, reports and folders; without it, as the file writes the model.
    """

    name: Text = ""
    model: Text
    attention: Literal["self", "encoder", "decoder", "cross"] = "self"
    device: Text | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    tokenizer: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        """Set the name of a model to the text in the file."""
        if not isinstance(values, dict):
            values = {"model": values}
        return values if "name" in values else {**values, "name": values.get("model", "")}

    @field_validator("model", "tokenizer")
    @classmethod
    def _resolve_source(cls, source: str | None, info: ValidationInfo) -> str | None:
        """Find what is named from where the job file lies, and refuse a model that is not there."""
        folder = info.context
        if source is None or folder is None:
            return source
        base, at, revision = source.partition("@")
        if (folder / base).is_dir():
            source = f"{(folder / base).absolute()}{at}{revision}"
        if info.field_name == "model":
            find_model(source)
        return source

    @field_validator("device")
    @classmethod
    def _is_device(cls, device: str | None) -> str | None:
        """Refuse a device that torch does not know."""
        if device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", device):
            raise InvalidInput(f"device: no {device!r}; give cpu, cuda or cuda:N")
        return device

    def load(self) -> Model:
        """Load it; it is called by its name, so that no file depends on where the model lies."""
        from dataclasses import replace

        model = probes.load_model(
            self.model, self.device, self.dtype, self.tokenizer, self.attention
        )
        return replace(model, name=self.name)


class TaskSpec(Entry):
    """A task of a job: a task of the registry, or prompts of your own.

    ``task``, ``number``, ``register`` and ``options`` are the name of a built-in task, the prompts
    drawn from it, their wording and its options; instead, ``prompts`` is a file of prompts as
    `headscope capture --prompts` takes it, and ``texts`` are the prompts. ``name`` is its name in
    tables, reports and folders.
    """

    task: Text = ""
    prompts: Text = ""
    texts: Annotated[list[Text], Field(min_length=1)] = []
    name: Text = ""
    number: Count = 0
    wording: Register = None
    options: dict[str, Any] = {}
    _own: Any = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _entry(cls, values: Any) -> Any:
        """Convert a text to the entry of a task of that name."""
        return values if isinstance(values, dict) else {"task": values}

    @field_validator("task")
    @classmethod
    def _is_known(cls, name: str) -> str:
        """Refuse a task that does not come with headscope."""
        if name not in tasks.names():
            own = "; a file of your own goes into `prompts:`" if name.endswith(".jsonl") else ""
            raise InvalidInput(f"task: no {name!r}{own or near(name, tasks.names())}")
        return name

    @field_validator("prompts")
    @classmethod
    def _is_readable(cls, file: str, info: ValidationInfo) -> str:
        """Refuse a file that holds no prompts."""
        read_prompts(_folder(info) / file)
        return file

    @field_validator("number", "wording", "options")
    @classmethod
    def _is_of_a_task(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what own prompts have no use for."""
        if info.data.get("prompts") or info.data.get("texts"):
            name = "register" if info.field_name == "wording" else info.field_name
            raise InvalidInput(f"{name}: only of a built-in task; prompts are all used")
        return value

    @model_validator(mode="after")
    def _has_one_kind(self, info: ValidationInfo) -> TaskSpec:
        """Refuse an entry without prompts, and one with two kinds of them."""
        if sum(map(bool, (self.task, self.prompts, self.texts))) != 1:
            raise InvalidInput("task: give one of `task: NAME`, `prompts: FILE` and `texts: [...]`")
        self._own = read_prompts(_folder(info) / self.prompts) if self.prompts else self.texts
        return self

    @property
    def label(self) -> str:
        """Return the name of of the entry, or else of its task or file."""
        return self.name or self.task or Path(self.prompts).stem or "texts"

    @property
    def answered(self) -> bool:
        """Whether answers are known, so that analyses can score them."""
        return bool(self.task) or hasattr(self._own, "metric")

    @property
    def paired(self) -> bool:
        """Whether its prompts are pairs, for the decoder of an encoder–decoder model."""
        return isinstance(self._own, list) and bool(self._own) and isinstance(self._own[0], Pair)

    @property
    def count(self) -> int:
        """Number of its prompts."""
        return self.number if self.task else len(self._own)

    def draw(self, model: Model, seed: int) -> Any:
        """Generate the prompts for the tokenizer of a model."""
        if not self.task:
            return self._own
        if model.tokenizer is None:
            raise InvalidInput("tokenizer: a task needs one; give the model a `tokenizer:`")
        return tasks.make(
            self.task, model.tokenizer, self.number, seed, register=self.wording, **self.options
        )

    def describe(self) -> dict[str, Any]:
        """Describe the entry; prompts of a file by their digest."""
        if self.task:
            fields = {"task", "number", "wording", "options"}
            fields_set = self.model_dump(include=fields, exclude_none=True, by_alias=True)
            return {"name": self.label, **fields_set}
        digest = hashlib.sha256(repr(self._own).encode()).hexdigest()
        return {"name": self.label, "prompts_sha256": digest}


class JobFields(Entry):
    """The fields of a job file; the entries of its lists are checked one by one."""

    models: Items
    tasks: Items
    analyses: Items
    title: Text = ""
    options: dict[str, Any] = {}
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)] = [0]
    number: Count = 32
    wording: Register = None
    shard: Count = 0
    threads: Count = 1
    batch_tokens: Count = 8192


def find_model(source: str) -> None:
    """Refuse a model that is not there, without loading it."""
    located = locate(source)
    if Path(located.path).is_dir() or located.path in constructed.names():
        return
    close = near(source, [*BUNDLED, *constructed.names()])
    if source.startswith("headscope/"):
        raise InvalidInput(f"model: no {source!r} comes with headscope{close}")
    from huggingface_hub import HfApi, try_to_load_from_cache

    name, revision = located.path, located.revision
    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        return
    try:
        HfApi().model_info(name, revision=revision, timeout=5)
    except Exception as error:
        raise InvalidInput(
            f"model: {source!r} is no folder and not in the local cache, and the hub does not "
            f"have it or cannot be reached{close}"
        ) from error

"""Resolve a model name to a folder or a hub name; checkpoints follow an ``@``.

A folder may hold several checkpoints of one model, ``model.step400.safetensors`` and so on beside
one config and one tokenizer, as ``save_pretrained(variant="step400")`` writes them. Neither torch
nor transformers is imported here.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from headscope.kernels.errors import InvalidInput
from headscope.probes import constructed
from headscope.probes.bundled import BUNDLED
from headscope.probes.bundled import folder as bundled_folder
from headscope.probes.models import packaged
from headscope.probes.models.gguf_file import converted_folder

HUB = r"[\w-][\w.-]*(/[\w.-]+)?"
REVISION = r"[\w][\w./-]*"
STEP = re.compile(r"(?:step|checkpoint|ckpt|iter)[-_]?(\d+)", re.IGNORECASE)
# Names in a refusal; more would hide what it says.
LISTED = 24


class ModelSource(NamedTuple):
    """Address of a model.

    Attributes
    ----------
    path
        A folder, a name on the hub, or the name of a constructed model.
    name
        What to call the model; with its checkpoint, where it is one of several.
    variant
        Which weights of a folder that holds several, or None.
    revision
        Which revision of the hub, or None.
    gguf
        The GGUF file that the folder is converted from, or None.
    """

    path: str
    name: str
    variant: str | None = None
    revision: str | None = None
    gguf: Path | None = None


def locate(source: str | os.PathLike[str]) -> ModelSource:
    """Find the folder of a source, or its name on the hub, and which checkpoint is meant.

    Of a folder that holds checkpoints alone, the last is meant unless one is named.

    >>> locate("EleutherAI/pythia-70m@step1000").revision
    'step1000'
    """
    name = os.fspath(source)
    if name in constructed.names():
        return ModelSource(name, name)
    if name.lower().endswith(".gguf"):
        file = Path(name).expanduser()
        if not file.is_file():
            raise InvalidInput(f"model: there is no file {name}")
        return ModelSource(str(converted_folder(file)), name, gguf=file)
    if name in packaged.PACKAGED and not packaged.is_fetched(name):
        raise InvalidInput(
            f"model: {name} is not on this machine yet; run headscope models get {name}"
        )
    folder, checkpoint = folder_of(source), None
    if folder is None and "@" in name:
        name, _, checkpoint = name.rpartition("@")
        folder = folder_of(name)
    if folder is None:
        if not isinstance(source, str) or not re.fullmatch(HUB, name):
            raise InvalidInput(f"model: there is no folder {os.fspath(source)}")
        if checkpoint is not None and not re.fullmatch(REVISION, checkpoint):
            raise InvalidInput(f"model: {checkpoint!r} is no revision; write NAME@REVISION")
        return ModelSource(name, source, revision=checkpoint)
    if not (folder / "config.json").is_file():
        if name in BUNDLED:
            raise InvalidInput(f"model: {name} has no weights in this installation; reinstall it")
        raise InvalidInput(f"model: the folder {name} {_contents(folder)}")
    available = variants(folder)
    if checkpoint is None and (not available or _has_main_weights(folder)):
        return ModelSource(str(folder), name)
    if not available:
        raise InvalidInput(
            f"model: {name} is one model, without checkpoints; leave out '@{checkpoint}'"
        )
    chosen = available[-1] if checkpoint is None else checkpoint
    if chosen not in available:
        raise InvalidInput(
            f"model: {name} has no checkpoint {chosen!r}; it has {listed(available)}"
        )
    return ModelSource(str(folder), f"{name}@{chosen}", variant=chosen)


def folder_of(source: str | os.PathLike[str]) -> Path | None:
    """Return the folder that a source names, or None where it names none."""
    name = os.fspath(source)
    if name in BUNDLED:
        return bundled_folder(name)
    if name in packaged.PACKAGED:
        return packaged.folder(name)
    folder = Path(name).expanduser()
    return folder if folder.is_dir() else None


def _contents(folder: Path) -> str:
    """Describe what a folder without a config holds, and what to give instead."""
    if (folder / "adapter_config.json").is_file():
        return (
            "holds an adapter, not a model; merge it into its base model with peft "
            "(merge_and_unload, save_pretrained) and give that folder"
        )
    snapshots = sorted(str(config.parent) for config in folder.glob("snapshots/*/config.json"))
    if snapshots:
        return f"is of the hub's cache; give its snapshot {listed(snapshots)}"
    inside = sorted(config.parent.name for config in folder.glob("*/config.json"))
    if inside:
        return f"holds {len(inside)} models, not one; give one of {listed(inside)} in it"
    files = sorted(file.name for file in folder.glob("*.gguf"))
    if files:
        return f"holds GGUF files; give one of them: {listed(files)}"
    return "holds no config.json, so no model"


def variants(folder: Path) -> list[str]:
    """List the checkpoints that lie side by side in a folder, by step."""
    names = {file.name.split(".")[1] for file in folder.glob("model.*.safetensors")}
    steps = {name: step for name in names if (step := step_of(name)) is not None}
    return sorted(steps, key=lambda name: (steps[name], name))


def step_of(name: str) -> int | None:
    """Read the training step from the name of a checkpoint, None where it names none.

    >>> step_of("checkpoint-400"), step_of("step1000-tokens4B"), step_of("final")
    (400, 1000, None)
    """
    steps = STEP.findall(re.split(r"[/\\@]", name)[-1])
    return int(steps[-1]) if steps else None


def listed(names: Sequence[str]) -> str:
    """Join names for a refusal, the first ones where there are many."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _has_main_weights(folder: Path) -> bool:
    names = ("model.safetensors", "model.safetensors.index.json")
    return any((folder / name).is_file() for name in names)

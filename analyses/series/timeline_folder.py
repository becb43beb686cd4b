"""The folder of a timeline: one file a checkpoint, resumable."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from headscope.analyses.series.state import State
from headscope.kernels.errors import InvalidInput
from headscope.probes.storage import dataset_file

MANIFEST = "timeline.json"
WHOLE = "timeline.safetensors"
PAGE = "timeline.html"
PARTS = "checkpoints"
FORMAT = "headscope-timeline-1"


@dataclass(frozen=True)
class TimelineFolder:
    """The folder of one timeline."""

    path: Path

    def find(self, state: State) -> xr.Dataset | None:
        """Return the result of a checkpoint, or None where there is none or its files changed."""
        file = self._file(state)
        if not file.is_file():
            return None
        result = dataset_file.load(file)
        origin = (result.attrs.pop("source", ""), result.attrs.pop("stamp", ""))
        return result if origin == (state.name, state.stamp()) else None

    def save(self, state: State, result: xr.Dataset) -> None:
        """Write the result of a checkpoint atomically."""
        marked = result.assign_attrs(source=state.name, stamp=state.stamp())
        dataset_file.save(marked, self._file(state))

    def finish(self, whole: xr.Dataset) -> None:
        """Write the timeline beside its parts."""
        dataset_file.save(whole, self.path / WHOLE)

    def _file(self, state: State) -> Path:
        plain = re.sub(r"[^\w.-]", "_", state.label)
        return self.path / PARTS / f"{plain}-{digest(state.name)[:8]}.safetensors"


def prepare(
    path: str | os.PathLike[str], identity: Mapping[str, Any], *, overwrite: bool = False
) -> TimelineFolder:
    """Create the folder of a timeline, or open one with the same identity."""
    folder = Path(path)
    manifest = folder / MANIFEST
    if manifest.is_file():
        previous = read(folder)
        differing = [name for name, value in identity.items() if previous.get(name) != value]
        if not differing:
            return TimelineFolder(folder)
        if not overwrite:
            was = "; ".join(f"{name} {previous.get(name)!r}" for name in differing)
            raise InvalidInput(
                f"out: {folder} holds a timeline with {was}, not {identity[differing[0]]!r}; "
                "choose another folder or replace it (--overwrite)"
            )
        for file in [*(folder / PARTS).glob("*.safetensors"), folder / WHOLE, folder / PAGE]:
            file.unlink(missing_ok=True)
    elif folder.is_dir() and any(file.name[0] != "." for file in folder.iterdir()):
        raise InvalidInput(f"out: {folder} holds other files; choose an empty or new folder")
    try:
        (folder / PARTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"out: {folder} cannot be written: {error.strerror}") from error
    header = {"format": FORMAT, "created": datetime.now(UTC).isoformat(timespec="seconds")}
    dataset_file.write_text(manifest, json.dumps({**header, **identity}, indent=2) + "\n")
    return TimelineFolder(folder)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the manifest of a timeline."""
    try:
        manifest = json.loads((Path(path) / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"timeline: {path} holds no {MANIFEST}; headscope timeline") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InvalidInput(f"timeline: {path} was not written by this version of headscope")
    return manifest


def holds(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder holds a finished timeline."""
    return (Path(path) / MANIFEST).is_file() and (Path(path) / WHOLE).is_file()


def load(path: str | os.PathLike[str]) -> xr.Dataset:
    """Load the timeline that a folder holds."""
    read(path)
    if not (Path(path) / WHOLE).is_file():
        raise InvalidInput(f"timeline: {path} is not finished; run the same command again")
    return dataset_file.load(Path(path) / WHOLE)


def digest(value: Any) -> str:
    """Return a digest of prompts: texts, token ids, a task, or arrays of pixels."""
    return hashlib.sha256(_serialized(value).encode()).hexdigest()[:16]


def _serialized(value: Any) -> str:
    if hasattr(value, "shape"):
        array = np.asarray(value)
        return f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
    if isinstance(value, list | tuple):
        return f"[{' '.join(map(_serialized, value))}]"
    return repr(value)

"""Run folders: one capture, its results and a manifest."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xarray as xr

from headscope.kernels.errors import InvalidInput
from headscope.probes.models.pair import Pair
from headscope.probes.prompts.task import Task
from headscope.probes.storage import dataset_file, task_file

MANIFEST = "manifest.json"
CAPTURE = "capture.safetensors"
# The user's own prompts with their answers, where the run was captured on such.
TASK = "task.json"
GROWING = f".{CAPTURE}"
"""Name of the capture of a run that is not complete yet."""
RESULTS = "results"
# What ablations did, prompt by prompt and head by head.
EFFECTS = "effects"
# Ending of the traceback of an analysis that failed.
ERROR = ".error.txt"
# Written beside a run by its report, so they belong to it and go with it.
REPORT = (
    "report.html", "heads.parquet", "heads.csv", "heads.schema.json", "scores.parquet",
    "scores.csv", "report.json",
)  # fmt: skip
FORMAT = "headscope-run-1"


@dataclass(frozen=True)
class Run:
    """A run folder; its manifest says model, revision, task or prompts, seed and versions."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name

    @property
    def capture(self) -> xr.Dataset:
        """The capture; its numbers stay on disk until they are read."""
        return dataset_file.load(self.path / CAPTURE, mapped=True)

    def prompts(self) -> list[Any]:
        """Token ids of the prompts, as captured; pairs where a decoder was, or pixels."""
        capture = self.capture
        if "pixels" in capture.coords:
            return list(capture["pixels"].values)
        ids = _rows(capture, "token_id", "length")
        for name in ("key", "source"):
            if f"{name}_length" in capture.coords:
                sources = _rows(capture, f"{name}_token_id", f"{name}_length")
                return [Pair(*pair) for pair in zip(sources, ids, strict=True)]
        return ids

    def own_task(self) -> Task | None:
        """Return the task of the user's own that was captured; None for other prompts."""
        file = self.path / TASK
        return task_file.load(file) if file.exists() else None

    def save_result(self, name: str, result: xr.Dataset) -> Path:
        """Write the result of one analysis into the folder, in place of an earlier one."""
        folder = self.path / RESULTS
        dataset_file.make_folder(folder)
        path = folder / f"{name}.safetensors"
        dataset_file.save(result, path)
        return path

    @property
    def effects(self) -> Path:
        """Folder of the effects of ablations, which analyses share."""
        return self.path / EFFECTS

    def error_file(self, name: str) -> Path:
        """Path of the traceback of an analysis that failed."""
        return self.path / RESULTS / f"{name}{ERROR}"

    def results(self) -> dict[str, xr.Dataset]:
        """Read every result in the folder, by the name of its analysis, in order of name."""
        files = sorted((self.path / RESULTS).glob("[!.]*.safetensors"))
        return {file.stem: dataset_file.load(file) for file in files}


def _rows(capture: xr.Dataset, name: str, length: str) -> list[list[int]]:
    rows = zip(capture[name].values, capture[length].values, strict=True)
    return [row[:count].tolist() for row, count in rows]


def create(
    path: str | os.PathLike[str],
    capture: xr.Dataset,
    *,
    prompts: str = "",
    own_task: Task | None = None,
    options: Mapping[str, Any] | None = None,
    replace: bool = False,
    file: Path | None = None,
) -> Run:
    """Make a run folder from a capture; the manifest comes last, so half a run is none.

    Parameters
    ----------
    prompts
        File that the prompts came from, if any.
    own_task
        The prompts with their answers, where they are a task of the user's own.
    options
        Options of the task or the capture, to be able to repeat it.
    replace
        Replace an earlier run in the folder, its results included.
    file
        File in the folder that holds the capture already; it is moved into its place.
    """
    folder = Path(path)
    check(folder, replace=replace)
    dataset_file.make_folder(folder)
    _clear(folder)
    attrs = capture.attrs
    manifest = {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **{name: attrs[name] for name in ("model", "revision", "architecture", "task", "seed")},
        "attention": attrs.get("attention", "self"),
        "register": attrs.get("register", ""),
        "redrawn": attrs.get("redrawn", 0),
        "n_prompts": attrs["n_prompts"],
        "prompts_sha256": attrs["prompts_sha256"],
        "prompts": prompts,
        "options": dict(options or {}),
        "headscope": version("headscope"),
    }
    if file is None:
        dataset_file.save(capture, folder / CAPTURE)
    else:
        os.replace(file, folder / CAPTURE)
    if own_task is not None:
        task_file.save(own_task, folder / TASK)
    dataset_file.write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return Run(folder, manifest)


def open(path: str | os.PathLike[str]) -> Run:  # noqa: A001
    """Open a run folder."""
    folder = Path(path)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"run: {path} holds no {MANIFEST}, so no run; capture one first"
        ) from error
    except json.JSONDecodeError as error:
        raise InvalidInput(f"run: {path}/{MANIFEST} is broken ({error}); capture again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InvalidInput(f"run: {path}/{MANIFEST} was not written by this version of headscope")
    return Run(folder, manifest)


def check(path: str | os.PathLike[str], *, replace: bool = False) -> None:
    """Refuse a folder that could not take a run, before anything is computed; leaves no trace."""
    folder = Path(path)
    if (folder / MANIFEST).exists() and not replace:
        raise InvalidInput(
            f"out: {path} already holds a run; choose another folder or replace it (--overwrite)"
        )
    if folder.is_dir() and not (folder / MANIFEST).exists() and _other_files(folder):
        raise InvalidInput(f"out: {path} holds other files; choose an empty or new folder")
    check_writable(folder)


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written, whether it is there or not; leaves no trace."""
    nearest = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        raise InvalidInput(f"out: {folder} cannot be written: {nearest} is a file")
    probe = nearest / f".headscope.{os.getpid()}.tmp"
    with dataset_file.refusing("out", folder):
        probe.touch()
        probe.unlink()


def _other_files(folder: Path) -> list[Path]:
    names = {CAPTURE, TASK, MANIFEST, RESULTS, EFFECTS, *REPORT}
    return [file for file in folder.iterdir() if file.name not in names and file.name[0] != "."]


def _clear(folder: Path) -> None:
    """Take an earlier run apart, its manifest first; only files that runs are made of."""
    old = [folder / name for name in (MANIFEST, CAPTURE, TASK, *REPORT)]
    old += [file for name in (RESULTS, EFFECTS) for file in (folder / name).glob("*.safetensors")]
    old += [*(folder / RESULTS).glob(f"*{ERROR}")]
    for file in old:
        file.unlink(missing_ok=True)


def prepare(path: str | os.PathLike[str], *, replace: bool = False) -> Path:
    """Check the folder of a run, and name the file that its capture may grow in."""
    folder = Path(path)
    check(folder, replace=replace)
    # Complete, but a kill came before its manifest: what it belongs to is not known.
    (folder / GROWING).unlink(missing_ok=True)
    return folder / GROWING

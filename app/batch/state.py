"""What a batch has done, kept in its folder so that a kill loses one cell at most."""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import xarray as xr

from headscope.app.batch.job import Group, Job
from headscope.app.batch.worker import Failure
from headscope.app.exports import long_table
from headscope.kernels.errors import InvalidInput
from headscope.probes.storage import dataset_file
from headscope.probes.storage.run_folder import check_writable

IDENTITY = "job.json"
COPY = "job.yaml"
MANIFEST = "manifest.json"
INDEX = "index.html"
LOG = "log.jsonl"
LOCK = ".lock"
HEADS, CELLS, RESULTS, REPORTS = "heads", "cells", "results", "reports"
OURS = (IDENTITY, COPY, MANIFEST, INDEX, LOG, HEADS, CELLS, RESULTS, REPORTS)
TABLE = "heads.parquet"
# Columns of the long table that are folders here, as is the seed.
FOLDERS = ("model", "task", "analysis")
PLOTLY = "plotly.min.js"

Record = dict[str, Any]


@dataclass(frozen=True)
class BatchState:
    """Progress of a batch, stored in its folder."""

    path: Path
    job: Job

    def check(self, *, overwrite: bool = False) -> None:
        """Refuse a folder that cannot take the job, before anything runs; leaves no trace."""
        check_writable(self.path)
        if not self.path.is_dir():
            return
        names = {path.name for path in self.path.iterdir() if not path.name.startswith(".")}
        if names - {COPY} and IDENTITY not in names:
            raise InvalidInput(f"out: {self.path} holds other files; choose an empty or new folder")
        if IDENTITY not in names or overwrite:
            return
        first = self._read(self.path / IDENTITY) or {}
        now = self.job.identity()
        for name in dict.fromkeys((*now, *first)):
            if first.get(name) != now.get(name):
                raise InvalidInput(
                    f"out: {self.path} was begun with other {name}; choose another folder, or "
                    "replace it (--overwrite)"
                )

    @contextmanager
    def open(self, *, overwrite: bool = False) -> Iterator[None]:
        """Lock the folder for this process, and remove incomplete files of a killed run."""
        self.check(overwrite=overwrite)
        dataset_file.make_folder(self.path)
        with self._lock():
            if overwrite and (self.path / IDENTITY).exists():
                self._clear()
            for half in self.path.rglob(".*.tmp"):
                half.unlink(missing_ok=True)
            if not (self.path / IDENTITY).exists():
                dataset_file.write_text(self.path / COPY, self.job.content.decode())
                dataset_file.write_text(self.path / IDENTITY, pretty(self.job.identity()))
            yield

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Lock the folder against other batches."""
        with dataset_file.refusing("out", self.path), (self.path / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InvalidInput(f"out: another batch runs in {self.path}; wait for it") from None
            # It stays: who removes it could remove that of the next.
            yield

    def _clear(self) -> None:
        """Remove what another job has left."""
        for name in OURS:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def record(self, group: Group, analysis: str) -> Record | None:
        """Read what is known of a cell; None where it has to be run."""
        record = self._read(self._cell(CELLS, group, analysis))
        if record is None or record.get("cell") != self.job.cell_id(group, analysis):
            return None
        for name, digest in record["files"].items():
            file = self.path / name
            if not file.is_file() or _digest(file) != digest:
                return None
        return record

    @property
    def known(self) -> int:
        """Number of cells that need not be run."""
        cells = [(group, name) for group in self.job.groups for name in group.analyses]
        return sum(self.record(*cell) is not None for cell in cells)

    def forget(self, group: Group, analysis: str) -> None:
        """Drop a cell and its results, so that it is run again."""
        shutil.rmtree(self.report(group), ignore_errors=True)
        self._cell(CELLS, group, analysis).unlink(missing_ok=True)

    def save(self, group: Group, analysis: str, result: xr.Dataset) -> None:
        """Write the rows and the result of a cell, and then that it is done."""
        import pyarrow.parquet as pq

        identity = self.job.cell_id(group, analysis)
        cell_rows = long_table.rows({analysis: result}, identity).drop_columns(list(FOLDERS))
        rows = self.path / HEADS / _partition(group, analysis) / TABLE
        result_file = self._cell(RESULTS, group, analysis)
        for file in (rows, result_file):
            dataset_file.make_folder(file.parent)
        with dataset_file.replacing(rows) as temporary:
            pq.write_table(cell_rows, temporary)
        dataset_file.save(result, result_file)
        self._write(group, analysis, {
            "state": "done",
            "rows": cell_rows.num_rows,
            **{name: result.attrs.get(name, "") for name in ("revision", "prompts_sha256")},
            "n_prompts": result.attrs.get("n_prompts"),
            "files": {
                str(file.relative_to(self.path)): _digest(file) for file in (rows, result_file)
            },
        })  # fmt: skip

    def fail(self, group: Group, analysis: str, failure: Failure) -> None:
        """Record why a cell has no result."""
        self._write(group, analysis, {"state": "failed", "reason": failure.reason, "files": {}})
        if failure.trace:
            self.note(event="failed", place=group.subfolder, analysis=analysis, trace=failure.trace)

    def _write(self, group: Group, analysis: str, record: Record) -> None:
        file = self._cell(CELLS, group, analysis)
        dataset_file.make_folder(file.parent)
        names = {
            "cell": self.job.cell_id(group, analysis),
            "model": group.model.name,
            "task": group.task.label,
            "seed": group.seed,
            "analysis": analysis,
        }
        dataset_file.write_text(file, pretty({**names, **record}))

    def result(self, group: Group, analysis: str) -> xr.Dataset:
        """Read the result of a cell that is done."""
        return dataset_file.load(self._cell(RESULTS, group, analysis))

    def report(self, group: Group) -> Path:
        """Folder of the report of a group."""
        return self.path / REPORTS / group.subfolder

    def note(self, **event: Any) -> None:
        """Add a line, with the time, to the log: the one file that differs from run to run."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds"), **event})
        log = self.path / LOG
        with dataset_file.refusing("out", log), log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _cell(self, kind: str, group: Group, analysis: str) -> Path:
        """Return the file of a cell among its kind."""
        ending = {CELLS: "json", RESULTS: "safetensors"}[kind]
        return self.path / kind / group.subfolder / f"{analysis}.{ending}"

    @staticmethod
    def _read(file: Path) -> Record | None:
        """Read a record; None where there is none, or half of one."""
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) else None


def _partition(group: Group, analysis: str) -> str:
    """Return the folder of a cell in the table, in the style of Hive."""
    model, task, seed = group.subfolder.split("/")
    return "/".join((model, task, f"analysis={quote(analysis, safe='')}", seed))


def pretty(value: Mapping[str, Any]) -> str:
    """Write JSON for people, the same each time."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()

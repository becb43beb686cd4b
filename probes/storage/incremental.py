"""Write a capture to disk batch by batch, and resume an interrupted one.

The file is a safetensors file as `dataset_file` writes it, under a hidden name until it is
complete; a journal beside it lists the batches that are safely in it.
"""

import hashlib
import json
import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from headscope.kernels.errors import InvalidInput
from headscope.probes.storage import dataset_file

KINDS = {"f4": "F32", "f8": "F64", "i8": "I64", "b1": "BOOL"}
ALIGNMENT = 8
CHUNK = 1 << 22


@dataclass
class Stream:
    """A file that is being filled, and is renamed to ``path`` when it is complete.

    ``arrays`` are the growing variables, in the file itself; ``done`` the batches that an earlier,
    interrupted run has written.
    """

    path: Path
    arrays: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)

    @property
    def partial(self) -> Path:
        """The file until it is complete."""
        return self.path.with_name(f".{self.path.name}.partial")

    @property
    def journal(self) -> Path:
        """The list of batches that are in the file."""
        return self.path.with_name(f".{self.path.name}.journal")

    def commit(self, batch: int) -> None:
        """Record that a batch has been written to the file."""
        with dataset_file.refusing("out", self.journal):
            for array in self.arrays.values():
                if isinstance(array, np.memmap):
                    array.flush()
                    # What is on disk need not stay in memory.
                    mapped: Any = array.base
                    mapped.madvise(mmap.MADV_DONTNEED)
            with self.journal.open("a", encoding="utf-8") as file:
                file.write(f"{batch}\n")
                file.flush()
                os.fsync(file.fileno())

    def finish(self) -> None:
        """Rename the complete file to its final name."""
        self.arrays.clear()
        with dataset_file.refusing("out", self.path):
            with self.partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(self.partial, self.path)
            self.journal.unlink(missing_ok=True)


def begun(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the attrs of an interrupted capture; none where there is no half file."""
    partial = Stream(Path(path)).partial
    try:
        with partial.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return dict(json.loads(header["__metadata__"]["dataset"])["attrs"])
    except (OSError, ValueError, KeyError):
        # Killed before its header was whole: it is laid out anew.
        return {}


def begin(
    path: str | os.PathLike[str],
    skeleton: xr.Dataset,
    growing: Mapping[str, tuple[int, ...]],
    targets_digest: str,
    *,
    replace: bool = False,
) -> Stream:
    """Create a file, NaN wherever a capture will write, or resume one that was interrupted.

    Parameters
    ----------
    skeleton
        Dims, coords and attrs; the growing variables with arrays of any content.
    growing
        Shape of every variable that is filled batch by batch, float32.
    targets_digest
        SHA-256 of target and span positions, which the skeleton leaves out; half a file with
        another one is another capture's.
    replace
        Drop a half-written file of another capture.
    """
    stream = Stream(Path(path))
    header, offsets, fixed = _header(skeleton, growing)
    digest = hashlib.sha256(header + targets_digest.encode()).hexdigest()
    if stream.partial.exists() and stream.journal.exists():
        lines = stream.journal.read_text(encoding="utf-8").split("\n")
        if lines[0] == digest:
            # What follows the last line break was cut off while it was written.
            stream.done = {int(line) for line in lines[1:-1]}
        elif not replace:
            raise InvalidInput(
                f"out: {stream.partial} is half a capture of other prompts or options; "
                "delete it, or choose another place"
            )
    with dataset_file.refusing("out", stream.partial):
        if not stream.done:
            _lay_out(stream, header, digest, offsets, fixed, growing)
        for name, shape in growing.items():
            stream.arrays[name] = np.memmap(
                stream.partial, dtype="<f4", mode="r+", offset=offsets[name], shape=shape
            )
    return stream


def _header(
    skeleton: xr.Dataset, growing: Mapping[str, tuple[int, ...]]
) -> tuple[bytes, dict[str, int], dict[str, npt.NDArray[Any]]]:
    """Write the header of the file, and say where each tensor begins."""
    layout, tensors = dataset_file.describe(skeleton)
    fixed = {name: array for name, array in tensors.items() if name not in growing}
    entries: dict[str, Any] = {"__metadata__": layout}
    offset = 0
    starts = {}
    for name, array in tensors.items():
        shape = growing.get(name, array.shape)
        kind = "f4" if name in growing else array.dtype.str[1:]
        if kind not in KINDS:
            raise InvalidInput(f"{name}: {kind} has no place in a growing file")
        stop = offset + math.prod(shape) * int(kind[1:])
        offsets = [offset, stop]
        entries[name] = {"dtype": KINDS[kind], "shape": list(shape), "data_offsets": offsets}
        starts[name] = offset
        offset = stop
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: len(head) + start for name, start in starts.items()}, fixed


def _lay_out(
    stream: Stream,
    header: bytes,
    digest: str,
    offsets: Mapping[str, int],
    fixed: Mapping[str, npt.NDArray[Any]],
    growing: Mapping[str, tuple[int, ...]],
) -> None:
    stream.journal.unlink(missing_ok=True)
    end = len(header) + sum(array.nbytes for array in fixed.values())
    end += sum(4 * math.prod(shape) for shape in growing.values())
    try:
        with stream.partial.open("wb") as file:
            # A full disk must show here: a write into a mapped file would kill the process.
            os.posix_fallocate(file.fileno(), 0, end)
            file.write(header)
            for name, array in fixed.items():
                file.seek(offsets[name])
                file.write(np.ascontiguousarray(array).tobytes())
            missing = np.full(CHUNK, np.nan, dtype="<f4").tobytes()
            for name, shape in growing.items():
                file.seek(offsets[name])
                remaining = 4 * math.prod(shape)
                while remaining:
                    remaining -= file.write(missing[: min(remaining, len(missing))])
            file.flush()
            os.fsync(file.fileno())
        stream.journal.write_text(f"{digest}\n", encoding="utf-8")
    except OSError:
        stream.partial.unlink(missing_ok=True)
        raise

"""Store a Dataset as one safetensors file, its dims, coords and attrs as JSON in the header."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from headscope.kernels.errors import InvalidInput

FORMAT = "headscope-dataset-1"
KINDS = {"f4", "f8", "f2", "i8", "i4", "i2", "i1", "u1", "b1"}


def save(dataset: xr.Dataset, path: str | os.PathLike[str]) -> None:
    """Write a Dataset to a safetensors file, whole or not at all.

    Numbers (floats, integers, booleans) are stored as they are; texts, and attrs that JSON can
    hold, in the header. The file appears under its name, in a folder that exists, only when it is
    complete on disk. The same Dataset gives the same bytes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(xr.Dataset({"a": ("layer", np.ones(2))}), f"{folder}/a.safetensors")
    ...     load(f"{folder}/a.safetensors")["a"].values.tolist()
    [1.0, 1.0]
    """
    from safetensors.numpy import save_file

    metadata, tensors = describe(dataset)
    solid = {
        name: np.ascontiguousarray(values).reshape(values.shape) for name, values in tensors.items()
    }
    with replacing(path) as temporary:
        save_file(solid, temporary, metadata=metadata)
        _settle(temporary)


def _settle(path: str) -> None:
    """Sort the texts of a header, which the library writes in random order."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "the same texts, written as shortly"
        file.seek(8)
        file.write(text.ljust(length))


def describe(dataset: xr.Dataset) -> tuple[dict[str, str], dict[str, np.ndarray[Any, Any]]]:
    """Split a Dataset into the header of its file and the tensors."""
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    layout: dict[str, Any] = {"variables": {}, "attrs": dataset.attrs}
    for name, variable in dataset.variables.items():
        entry: dict[str, Any] = {
            "dims": list(variable.dims),
            "attrs": variable.attrs,
            "coord": name in dataset.coords,
        }
        if variable.dtype.kind in "UO":
            entry["text"] = _texts(str(name), variable.values)
        elif variable.dtype.str[1:] in KINDS:
            tensors[str(name)] = variable.values
        else:
            raise InvalidInput(f"{name}: {variable.dtype} has no place in a file; convert it first")
        layout["variables"][str(name)] = entry
    return {"format": FORMAT, "dataset": _json("dataset", layout)}, tensors


def load(path: str | os.PathLike[str], *, mapped: bool = False) -> xr.Dataset:
    """Read a Dataset that `save` has written.

    ``mapped`` leaves the numbers on disk until they are read, for captures larger than memory; they
    are read-only.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise InvalidInput(f"path: there is no file {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InvalidInput(
                    f"path: {path} was not written by headscope, or by another version"
                )
            layout = json.loads(metadata["dataset"])
            read = _map(path).__getitem__ if mapped else file.get_tensor
            variables = {
                name: (
                    entry["dims"],
                    np.array(entry["text"], dtype=str) if "text" in entry else read(name),
                    entry["attrs"],
                )
                for name, entry in layout["variables"].items()
            }
            coords = {name for name, entry in layout["variables"].items() if entry["coord"]}
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise InvalidInput(f"path: {path} is broken ({error}); make it again") from error
    return xr.Dataset(
        {name: value for name, value in variables.items() if name not in coords},
        coords={name: value for name, value in variables.items() if name in coords},
        attrs=layout["attrs"],
    )


def _map(path: str | os.PathLike[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Map every tensor of a safetensors file into memory, to be read when it is asked for."""
    kinds = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BOOL": "?", "U8": "u1"}
    kinds |= {f"I{8 * size}": f"<i{size}" for size in (1, 2, 4, 8)}
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape, kind = tuple(entry["shape"]), np.dtype(kinds[entry["dtype"]])
        if entry["data_offsets"][0] == entry["data_offsets"][1]:
            arrays[name] = np.empty(shape, kind)
            continue
        offset = 8 + length + entry["data_offsets"][0]
        arrays[name] = np.memmap(path, kind, "r", offset=offset, shape=shape)
    return arrays


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield a temporary path beside a file, and rename it to the file on success."""
    from safetensors import SafetensorError

    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield str(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        _discard(temporary)
        raise InvalidInput(f"path: {path} cannot be written: {_reason(error)}") from error
    except BaseException:
        _discard(temporary)
        raise


@contextmanager
def refusing(field: str, path: object) -> Iterator[None]:
    """Refuse with path and reason where the system cannot write, instead of its own error."""
    try:
        yield
    except OSError as error:
        raise InvalidInput(f"{field}: {path} cannot be written: {error.strerror}") from error


def make_folder(folder: Path) -> None:
    """Create a folder with its parents."""
    with refusing("out", folder):
        folder.mkdir(parents=True, exist_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")


def _discard(temporary: Path) -> None:
    # Where the folder itself is out of reach, nothing was written into it.
    with suppress(OSError):
        temporary.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _texts(name: str, values: np.ndarray[Any, Any]) -> Any:
    if not all(isinstance(text, str) for text in values.flat):
        raise InvalidInput(f"{name}: holds objects that are not texts; convert them first")
    return values.tolist()


def _json(name: str, value: Any) -> str:
    def convert(item: Any) -> Any:
        if isinstance(item, np.generic):
            return item.item()
        if isinstance(item, np.ndarray):
            return item.tolist()
        raise InvalidInput(f"{name}: an attr of type {type(item).__name__} has no place in a file")

    return json.dumps(value, default=convert)

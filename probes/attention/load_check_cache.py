"""On-disk cache of load-time correctness checks.

A pass is kept in the user's cache folder, one small file each, and holds only for what it was given
for: the files of the model, its config, the code that runs it, versions, number format, machine.
Objects that a user made are checked each time, as nothing tells what was done to them.
``HEADSCOPE_CHECK=always`` keeps and reads none.
"""

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import nn

from headscope.kernels.api import cache_folder, engine_fingerprint
from headscope.kernels.errors import HeadscopeError, InvalidInput
from headscope.probes.attention import load_check
from headscope.probes.models.model import Geometry, Model
from headscope.probes.models.model_source import locate
from headscope.probes.storage.dataset_file import write_text

VARIABLE = "HEADSCOPE_CHECK"
"""Environment variable: ``always`` checks at every load; unset, once a model."""
WEIGHTS = ("*.safetensors", "*.json")


def check_cached(model: Model, source: str | os.PathLike[str]) -> Model:
    """Return a model with its geometry, checked unless what lies at its source passed before."""
    wish = os.environ.get(VARIABLE, "")
    if wish not in ("", "always"):
        raise InvalidInput(f"{VARIABLE}: {wish!r}; unset it, or set it to 'always'")
    if wish == "always":
        return load_check.inspect(model)
    identity = _identity(model, source)
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:20]
    file = cache_folder() / "checks" / f"{name}.json"
    cached = _read(file, identity)
    if cached is not None:
        return replace(model, geometry=cached)
    passed = load_check.inspect(model)
    # Only a geometry can be taken back from the file.
    if passed == replace(model, geometry=passed.geometry):
        _write(file, identity, passed.geometry)
    return passed


def _identity(model: Model, source: str | os.PathLike[str]) -> dict[str, Any]:
    """Return everything that the outcome of the check depends on."""
    path = Path(locate(source).path)
    files = [file for kind in WEIGHTS for file in path.glob(kind)] if path.is_dir() else []
    config = model.module.config.to_json_string(use_diff=False)
    on_gpu = model.device.type == "cuda"
    return {
        "source": str(path.resolve()) if files else str(source),
        "files": _stats(files),
        "revision": model.revision,
        "architecture": f"{type(model.module).__module__}.{model.architecture}",
        "config": _digest(config),
        "attention": model.attention,
        "dtype": str(model.dtype),
        "device": torch.cuda.get_device_name(model.device) if on_gpu else model.device.type,
        "placed": str(getattr(model.module, "hf_device_map", "")),
        "code": _digest(*sorted(_code(model.module))),
        "headscope": [version("headscope"), _own_code()],
        "transformers": version("transformers"),
        "torch": str(torch.__version__),
        "engine": engine_fingerprint(),
    }


def _stats(files: list[Path]) -> list[list[Any]]:
    """Return what identifies the content of files: names, sizes, times of the last change."""
    stats = ((file, file.stat()) for file in sorted(files))
    return [[file.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for file, stat in stats]


def _code(module: nn.Module) -> Iterator[str]:
    """Return the current code of a model's modules, which may have been changed in memory."""
    kinds = {type(part) for part in module.modules()}
    owners: dict[str, Any] = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in kinds}
    owners.update({kind.__module__: sys.modules[kind.__module__] for kind in kinds})
    for owner, definitions in owners.items():
        for name, value in list(vars(definitions).items()):
            function = inspect.unwrap(value) if callable(value) else None
            code = getattr(function, "__code__", None)
            if code is not None:
                yield f"{owner}.{name} {_spelled(code)}"


def _spelled(code: CodeType) -> str:
    # A set among the constants has no order that lasts.
    plain = [
        repr(constant) for constant in code.co_consts if isinstance(constant, int | float | str)
    ]
    inner = [_spelled(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return _digest(code.co_code.hex(), *code.co_names, *code.co_freevars, *plain, *inner)


def _own_code() -> str:
    """Return a digest of our own source, which may be edited at any time."""
    files = list(Path(__file__).parents[1].rglob("*.py"))
    return _digest(json.dumps(_stats(files)))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


def _read(file: Path, identity: dict[str, Any]) -> Geometry | None:
    """Read a pass; a file that is missing, broken or of something else is none."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["identity"] != identity:
            return None
        numbers = dict(record["geometry"])
        without = tuple(map(int, numbers.pop("without")))
        flags: Any = {name: bool(numbers.pop(name)) for name in ("crossed", "causal", "sigmoid")}
        sizes: Any = {name: int(number) for name, number in numbers.items()}
        return Geometry(**sizes, without=without, **flags)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(file: Path, identity: dict[str, Any], geometry: Geometry) -> None:
    """Keep a pass; where nothing can be written, the check runs again at the next load."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        record = {"identity": identity, "geometry": asdict(geometry)}
        write_text(file, json.dumps(record, indent=1) + "\n")
    except (OSError, HeadscopeError):
        return

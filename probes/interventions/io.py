"""Save edits to a file and load them again."""

import json
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from headscope.kernels.errors import HeadscopeError, InvalidInput
from headscope.probes.interventions.base import KINDS, Edit
from headscope.probes.storage.dataset_file import replacing

FORMAT = "headscope-edits-1"


def save(edits: Sequence[Edit], path: str | os.PathLike[str]) -> None:
    """Write edits of this package to a safetensors file in a folder, atomically.

    Examples
    --------
    >>> import tempfile
    >>> from headscope.probes.interventions import Ablate
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save((Ablate(heads=((0, 1),)),), f"{folder}/edits.safetensors")
    ...     load(f"{folder}/edits.safetensors")
    (Ablate(heads=((0, 1),)),)
    """
    tensors: dict[str, Tensor] = {}
    listed: list[dict[str, Any]] = []
    for number, edit in enumerate(edits):
        kind = type(edit).__name__
        if KINDS.get(kind) is not type(edit):
            raise InvalidInput(f"edits: {kind} cannot be stored; use {', '.join(sorted(KINDS))}")
        entry: dict[str, Any] = {"edit": kind}
        for field in fields(edit):  # type: ignore[arg-type]  # those of this package are dataclasses
            value = getattr(edit, field.name)
            if isinstance(value, Tensor):
                tensors[f"{number}.{field.name}"] = value.detach().cpu().clone()
            else:
                entry[field.name] = value
        listed.append(entry)
    metadata = {"format": FORMAT, "edits": json.dumps(listed)}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load(path: str | os.PathLike[str]) -> tuple[Edit, ...]:
    """Read edits that `save` has written."""
    if not Path(path).is_file():
        raise InvalidInput(f"path: there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InvalidInput(f"path: {path} holds no edits of this version of headscope")
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        edits = []
        for number, entry in enumerate(json.loads(metadata["edits"])):
            kind = KINDS[entry.pop("edit")]
            arguments = {name: _frozen(value) for name, value in entry.items()}
            for name, tensor in tensors.items():
                owner, _, field = name.partition(".")
                if int(owner) == number:
                    arguments[field] = tensor
            edits.append(kind(**arguments))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, HeadscopeError):
            raise
        raise InvalidInput(f"path: {path} is broken ({error}); make it again") from error
    return tuple(edits)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value

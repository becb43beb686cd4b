"""Checkpoints of a training: all that it resumes from, in one safetensors file.

Tensors are stored as they are, and what the training was asked for as JSON in the header, so that a
checkpoint of another training is refused by name.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from headscope.kernels.errors import InvalidInput
from headscope.probes.storage.dataset_file import replacing

FORMAT = "headscope-training-1"
PERIOD = 60.0
"""Seconds between two checkpoints."""

State = dict[str, Tensor]


class Checkpoint:
    """A file that a training is kept in, and what tells the training from others.

    ``about`` are values that JSON holds, by the option that a user gives them by; ``period`` are
    the seconds from one checkpoint to the next.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], period: float = PERIOD) -> None:
        self.path, self.about, self.period = path, dict(about), period
        self.last = time.monotonic()

    def read(self) -> State | None:
        """Return what was kept, None where there is no file; refuse that of another training."""
        from safetensors import SafetensorError, safe_open

        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                header = file.metadata() or {}
                about = json.loads(header["about"]) if header.get("format") == FORMAT else None
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise InvalidInput(f"resume: {self.path} is broken ({error}); delete it") from error
        if about is None:
            raise InvalidInput(f"resume: {self.path} is no checkpoint of this version; delete it")
        for name in sorted({*about, *self.about}):
            if about.get(name) != self.about.get(name):
                raise InvalidInput(
                    f"{name}: {self.path} was trained with {about.get(name)!r}, not "
                    f"{self.about.get(name)!r}; give that to go on, or delete it to begin again"
                )
        return state

    def keep(self, state: Callable[[], State]) -> None:
        """Write the state where the last checkpoint is old enough, whole or not at all."""
        from safetensors.torch import save_file

        if time.monotonic() - self.last < self.period:
            return
        header = {"format": FORMAT, "about": json.dumps(self.about)}
        with replacing(self.path) as temporary:
            save_file(state(), temporary, header)
        self.last = time.monotonic()

    def delete(self) -> None:
        """Delete the file, if there is one."""
        self.path.unlink(missing_ok=True)


def prefixed(state: State, prefix: str) -> State:
    """Prefix the names of a state."""
    return {f"{prefix}{name}": part for name, part in state.items()}


def under(state: State, prefix: str) -> State:
    """Return the part of a state whose names have a prefix, without it."""
    names = [name for name in state if name.startswith(prefix)]
    return {name.removeprefix(prefix): state[name] for name in names}

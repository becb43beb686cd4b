"""Footprint: the memory that one call needs beyond its inputs, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headscope.kernels.refusal import Refused

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")
WARM = 64


def extra_bytes(group: str, name: str, length: int, heads: int, threads: int) -> int | None:
    """Measure the largest resident memory during a call, less that before it, results included.

    Parameters
    ----------
    group
        ``attention`` or ``model``.
    name
        A contender of that group.
    length, heads, threads
        Tokens, heads and torch threads.

    Returns
    -------
    Bytes; None where the system does not tell (it is read from Linux's ``/proc``).

    Raises
    ------
    Refused
        When the process fails, for example because memory ran out.
    """
    if not (STATUS.exists() and RESET.exists()):
        return None
    arguments = [group, name, str(length), str(heads), str(threads)]
    program = "import sys; from headscope.app.footprint import measure; measure(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
        raise Refused(f"memory of {name} at {length} tokens cannot be measured: {last}")
    return int(json.loads(done.stdout.splitlines()[-1]))


def measure(group: str, name: str, length: str, heads: str, threads: str) -> None:
    """Measure one call in this process and print the bytes."""
    import torch

    from headscope.app import contenders

    made: dict[str, Callable[[str, int, int], Callable[[], Any]]] = {
        "attention": contenders.attention_call,
        "model": contenders.model_call,
    }
    torch.set_num_threads(int(threads))
    # Libraries and threads are loaded once, whatever the length.
    made[group](name, WARM, int(heads))()
    call = made[group](name, int(length), int(heads))
    RESET.write_text("5")
    before = _read("VmRSS")
    result = call()
    extra = _read("VmHWM") - before
    del result
    sys.stdout.write(f"{json.dumps(extra)}\n")


def _read(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise Refused(f"memory: {STATUS} has no {field}")

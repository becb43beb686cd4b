"""Measure the memory of long texts, captured and in the cache of a TransformerBridge.

python -P benchmarks/context.py       4096 to 32768 tokens, some minutes

The cache of a TransformerBridge at 8192 tokens takes about 13 GB while it is made; it is left out
where less is free.
"""

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from headscope.kernels.api import memory
from headscope.kernels.errors import ResourceLimit
from headscope_benchmarks import machine, terminal
from headscope_benchmarks.bridge import LONG_LAYERS
from headscope_benchmarks.peak_memory import measure_peaks
from headscope_benchmarks.tables import context_tables
from headscope_benchmarks.timing import Report

LENGTHS = (4096, 8192, 16384, 32768)
BRIDGED = (4096, 8192)
HEADS = 8
PASSING = 2
"""N×N matrices of one layer that a bridge holds at once, beside those that it keeps."""
ROOM = 0.85
"""Share of the available memory that a case may need."""


def measure(
    lengths: Sequence[int] = LENGTHS,
    bridged: Sequence[int] = BRIDGED,
    progress: Report = lambda step, done, total: None,
) -> dict[str, Any]:
    """Measure captures and caches, each in a process of its own.

    Parameters
    ----------
    lengths
        Tokens of the texts that are captured.
    bridged
        Tokens of the texts whose patterns a bridge caches as well.
    progress
        Called with (step, done, total).

    Returns
    -------
    ``machine``, ``setup`` and ``rows``: what the result file holds. Bytes beyond the model.

    Raises
    ------
    ResourceLimit
        Where the system does not say what a process takes, or a case fails.
    """
    if not memory.measurable():
        raise ResourceLimit("memory: this system does not say what a process takes; Linux does")
    rows: list[dict[str, Any]] = []
    every = sorted({*lengths, *bridged})
    for length in every:
        row: dict[str, Any] = {"length": length, "extra_bytes": {}, "not_run": {}}
        for name, chosen_lengths in (("capture", lengths), ("bridge_cache", bridged)):
            if length not in chosen_lengths:
                continue
            # Asked again before every case, for others work on the machine too.
            reason = missing(name, length, memory.available())
            if reason is not None:
                row["not_run"][name] = reason
                continue
            threads = torch.get_num_threads()
            (sizes,) = measure_peaks(
                [("headscope_benchmarks.bridge:long_call", name, length, HEADS, threads)]
            )
            assert sizes is not None
            row["extra_bytes"][name] = sizes[0]
        rows.append(row)
        progress("context", len(rows), len(every))
    return {
        "schema": 1,
        "headscope": version("headscope"),
        "machine": {**machine.describe(), "load_after": machine.load()},
        "setup": {
            "layers": LONG_LAYERS,
            "heads": HEADS,
            "size": 64,
            "dtype": "float32",
            "batch": 1,
        },
        "rows": rows,
    }


def missing(name: str, length: int, available: int) -> str | None:
    """Return why a case cannot run in bytes of memory, None where it can.

    Examples
    --------
    >>> missing("bridge_cache", 8192, 10**10)
    'needs about 12.9 GB, 10.0 GB are free'
    >>> missing("capture", 8192, 10**10)
    """
    need = (LONG_LAYERS + PASSING) * HEADS * length**2 * 4
    if name != "bridge_cache" or need <= ROOM * available:
        return None
    return f"needs about {need / 1e9:.1f} GB, {available / 1e9:.1f} GB are free"


def main() -> int:
    """Measure, write the result, and print its table."""
    result = measure(progress=terminal.report)
    machine.save(result, f"context-{machine.slug(result['machine'])}")
    for table in context_tables(result):
        print(f"\n{table}")
    return 0


if __name__ == "__main__":
    terminal.run(main)

"""Context: the memory of a captured model and of a TransformerBridge's cache, as texts grow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from headscope.app.bench import machine
from headscope.app.bench.footprint import Case, weigh
from headscope.app.bench.sheets import NONE, Sheet
from headscope.kernels.api import memory
from headscope.kernels.errors import NotApplicable

LENGTHS = (4096, 8192, 16384, 32768)
BRIDGED = (4096, 8192)
LAYERS, HEADS = 4, 8
NAMES = ("capture", "bridge_cache")
BAR_LENGTH, BAR_BYTES = 16384, 1.5e9
PASSING = 2
"""N×N matrices of one layer that a bridge holds at once, beside those that it keeps."""
ROOM = 0.85
"""Share of the available memory that a case may need."""

Report = Callable[[str, int, int], None]


def run(
    lengths: Sequence[int] = LENGTHS,
    bridged: Sequence[int] = BRIDGED,
    progress: Report | None = None,
) -> dict[str, Any]:
    """Weigh captures and caches, each in a process of its own.

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
    NotApplicable
        Where the system does not tell what a process takes, or a case fails.
    """
    if not memory.measurable():
        raise NotApplicable("memory: this system does not tell what a process takes; Linux does")
    rows: list[dict[str, Any]] = []
    for length in sorted({*lengths, *bridged}):
        row: dict[str, Any] = {"length": length, "extra_bytes": {}, "not_run": {}}
        wanted = {"capture": length in lengths, "bridge_cache": length in bridged}
        for name in (one for one, asked in wanted.items() if asked):
            # Asked again before every case, for others work on the machine too.
            reason = missing(name, length, memory.available())
            if reason is not None:
                row["not_run"][name] = reason
                continue
            case: Case = ("context", name, length, HEADS, torch.get_num_threads())
            (weight,) = weigh([case])
            assert weight is not None
            row["extra_bytes"][name] = weight[0]
        rows.append(row)
        if progress is not None:
            progress("context", len(rows), len({*lengths, *bridged}))
    return {
        "schema": 1,
        "headscope": version("headscope"),
        "machine": {**machine.describe(), "load_after": machine.load()},
        "setup": {"layers": LAYERS, "heads": HEADS, "size": 64, "dtype": "float32", "batch": 1},
        "rows": rows,
    }


def needed(length: int) -> int:
    """Count the bytes of a bridge's patterns, and of the layer that it works on."""
    return (LAYERS + PASSING) * HEADS * length**2 * 4


def missing(name: str, length: int, available: int) -> str | None:
    """Say why a case cannot run, None where it can.

    Examples
    --------
    >>> missing("bridge_cache", 8192, 10**10)
    'needs about 12.9 GB, 10.0 GB are free'
    >>> missing("capture", 8192, 10**10)
    """
    if name != "bridge_cache" or needed(length) <= ROOM * available:
        return None
    return f"needs about {needed(length) / 1e9:.1f} GB, {available / 1e9:.1f} GB are free"


def context_call(name: str, length: int, heads: int) -> Callable[[], Any]:
    """Prepare one of ``NAMES``: four layers of GPT-2, random weights, one prompt.

    ``capture`` records the default statistics; ``bridge_cache`` returns the patterns of all layers
    (batch, head, query, key) and nothing else.
    """
    from headscope.app.bench import layers
    from headscope.probes import capture, load_model

    module = layers.gpt2(heads, length, LAYERS)
    draw = torch.Generator().manual_seed(length)
    ids = torch.randint(layers.VOCABULARY, (1, length), generator=draw)
    if name == "capture":
        model, prompts = load_model(module), ids.tolist()
        return lambda: capture(model, prompts)
    bridge = layers.bridged(module)
    points = [f"blocks.{layer}.attn.hook_pattern" for layer in range(LAYERS)]

    def call() -> Any:
        with torch.no_grad():
            kept = bridge.run_with_cache(ids, names_filter=points)[1]
        return [kept[point] for point in points]

    return call


def context_sheets(result: Mapping[str, Any]) -> Iterator[Sheet]:
    """Lay out the result as a table, and judge its bar."""
    rows, setup = result["rows"], result["setup"]
    yield Sheet(
        f"Memory beyond the model, {setup['layers']} layers × {setup['heads']} heads of "
        f"{setup['size']}, one prompt, MB",
        ("tokens", "captured", "bridge, patterns cached", "bridge / captured"),
        tuple(tuple(_cells(row)) for row in rows),
        "Captured has the default statistics of every head. The bridge keeps the N×N patterns and "
        f"nothing else.{_bar(rows)}{_reasons(rows)}",
    )


def _cells(row: Mapping[str, Any]) -> Iterator[str]:
    found = [row["extra_bytes"].get(name) for name in NAMES]
    yield str(row["length"])
    for one in found:
        yield NONE if one is None else f"{one / 1e6:.0f}"
    yield NONE if None in found else f"{found[1] / found[0]:.1f}×"


def _bar(rows: Sequence[Mapping[str, Any]]) -> str:
    for row in rows:
        extra = row["extra_bytes"].get("capture")
        if row["length"] == BAR_LENGTH and extra is not None:
            met = "met" if extra <= BAR_BYTES else "not met"
            return f" Bar: at most {BAR_BYTES / 1e6:.0f} MB captured at {BAR_LENGTH} tokens, {met}."
    return ""


def _reasons(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(
        f" Not run at {row['length']} tokens: {'bridge' if name != 'capture' else name}, {why}."
        for row in rows
        for name, why in row["not_run"].items()
    )

"""The clock: several calls timed in turn, so that other load meets every one alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Call = Callable[[], Any]
Timer = Callable[[Call], float]


def wall(call: Call) -> float:
    """Time one call by the clock on the wall, in milliseconds."""
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def cuda(call: Call) -> float:
    """Time one call by the clock of the CUDA device, in milliseconds."""
    event: Any = torch.cuda.Event
    start, stop = (event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    stop.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(stop))


def interleave(
    calls: Mapping[str, Call], rounds: int, *, warm: int = 1, timer: Timer = wall
) -> dict[str, Any]:
    """Time every call once a round, round after round.

    Parameters
    ----------
    calls
        What to time, by name; the first is what the others are compared with.
    rounds
        Rounds that count, 1 or more.
    warm
        Rounds before them that do not.
    timer
        Times one call in milliseconds: ``wall`` or ``cuda``.

    Returns
    -------
    By name the median in milliseconds, its ratio to the first, and the smallest and largest time.

    Examples
    --------
    >>> interleave({"a": list, "b": dict}, rounds=3)["ratio_to"]
    'a'
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warm + rounds):
        for name, call in calls.items():
            taken = timer(call)
            if number >= warm:
                times[name].append(taken)
    median = {name: statistics.median(each) for name, each in times.items()}
    first = next(iter(calls))
    return {
        "median_ms": {name: round(each, 3) for name, each in median.items()},
        "ratio": {name: round(each / median[first], 3) for name, each in median.items()},
        "ratio_to": first,
        "spread_ms": {name: [round(min(t), 3), round(max(t), 3)] for name, t in times.items()},
    }

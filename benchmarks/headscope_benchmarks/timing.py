"""Timing: several calls in turn, so that other load on the machine meets every one alike.

The clock is that of ``torch.utils.benchmark``, which waits for an accelerator. Its ``Timer`` is not
used: it repeats one statement in a block, after two calls that do not count, where these calls take
turns.
"""

import statistics
import timeit
from collections.abc import Callable, Mapping
from typing import Any

from torch.utils import benchmark

Call = Callable[[], Any]
Report = Callable[[str, int, int], None]
"""Takes a step, how much of it is done, and of how much."""


def milliseconds(call: Call) -> float:
    """Time one call by the clock on the wall."""
    return 1e3 * timeit.Timer(call, timer=benchmark.timer).timeit(1)


def interleave(
    calls: Mapping[str, Call],
    rounds: int,
    *,
    warmup: int = 1,
    timer: Callable[[Call], float] = milliseconds,
) -> dict[str, Any]:
    """Time every call once a round, round after round.

    Parameters
    ----------
    calls
        What to time, by name; the first is what the others are compared with.
    rounds
        Rounds that count, 1 or more.
    warmup
        Rounds before them that do not.
    timer
        Times one call in milliseconds.

    Returns
    -------
    By name the median in milliseconds, its ratio to the first, and the smallest and largest time.

    Examples
    --------
    >>> interleave({"a": list, "b": dict}, rounds=3)["ratio_to"]
    'a'
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warmup + rounds):
        for name, call in calls.items():
            elapsed = timer(call)
            if number >= warmup:
                times[name].append(elapsed)
    median = {name: statistics.median(values) for name, values in times.items()}
    first = next(iter(calls))
    return {
        "median_ms": {name: round(value, 3) for name, value in median.items()},
        "ratio": {name: round(value / median[first], 3) for name, value in median.items()},
        "ratio_to": first,
        "spread_ms": {name: [round(min(t), 3), round(max(t), 3)] for name, t in times.items()},
    }

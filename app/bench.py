"""Benchmark: headscope beside fused and eager attention, side by side in one run on this machine.

Times are medians of interleaved calls, so that other load on the machine meets every contender
alike; compare ratios, not milliseconds. Nothing is reported unless the numbers are right first.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headscope.app import contenders
from headscope.app.footprint import extra_bytes
from headscope.kernels.dense import attend_dense
from headscope.kernels.refusal import Refused
from headscope.probes.store import write_text

LENGTHS = (1024, 2048, 4096)
LONG = (8192, 16384)
HEADS = 12
GATE_LENGTH = 769
GATE_SIGMAS = (1.0, 16.0)
ENTROPY_BOUND = 1e-5
MATRICES = {"eager": 3, "eager_statistics": 5, "bridge_cache": 5}
"""N×N matrices of every head that a contender holds at once, to leave out what cannot fit."""

Report = Callable[[str, int, int], None]


def run(
    lengths: Sequence[int] = LENGTHS,
    *,
    heads: int = HEADS,
    rounds: int = 5,
    threads: Sequence[int] | None = None,
    progress: Report | None = None,
) -> dict[str, Any]:
    """Check every contender against the float64 oracle, then measure time and extra memory.

    Parameters
    ----------
    lengths
        Tokens of the text, several.
    heads
        Heads, each of size 64; causal, float32.
    rounds
        Calls of each contender that count; one more warms up.
    threads
        Numbers of torch threads; None is 1 and all that this process uses.
    progress
        Called with (step, done, total).

    Returns
    -------
    ``machine``, ``setup``, ``gate`` and the rows ``attention``, ``memory`` and ``model``: what the
    result file holds. Milliseconds and bytes.

    Raises
    ------
    Refused
        When a contender disagrees with the oracle, or an argument makes no sense.
    """
    if not lengths or min(lengths) < 1 or heads < 1 or rounds < 1:
        raise Refused("lengths, heads, rounds: each must be at least 1")
    tell: Report = progress or (lambda step, done, total: None)
    allowed = torch.get_num_threads()
    counts = sorted(set(threads or (1, allowed)))
    gate = check()
    load = _load()
    attention, memory, model = [], [], []
    try:
        for at, length in enumerate(lengths):
            for number, count in enumerate(counts):
                tell("attention", at * len(counts) + number, len(lengths) * len(counts))
                attention.append(_time("attention", length, heads, count, rounds))
        tell("attention", len(lengths) * len(counts), len(lengths) * len(counts))
        for at, length in enumerate(lengths):
            tell("model", at, len(lengths))
            model.append(_time("model", length, heads, counts[-1], rounds))
        tell("model", len(lengths), len(lengths))
    finally:
        torch.set_num_threads(allowed)
    for at, length in enumerate(lengths):
        tell("memory", at, len(lengths))
        memory.append(_weigh(length, heads, counts[-1]))
    tell("memory", len(lengths), len(lengths))
    return {
        "schema": 1,
        "headscope": version("headscope"),
        "machine": {**machine(), "load_before": load, "load_after": _load()},
        "setup": {
            "heads": heads,
            "size": contenders.SIZE,
            "batch": 1,
            "causal": True,
            "dtype": "float32",
            "statistics": ["z", *contenders.STATS],
            "rounds": rounds,
            "time": "median milliseconds of interleaved calls in one process",
            "memory": "bytes of peak resident memory beyond the inputs, a fresh process a call",
            "model": "one layer of GPT-2 with random weights; the bridge caches the pattern only",
        },
        "gate": gate,
        "attention": attention,
        "memory": memory,
        "model": model,
    }


def check() -> list[dict[str, Any]]:
    """Compare every contender with the dense float64 oracle on a short text.

    Returns
    -------
    A row for every contender, size of logits and output: the largest error and what is allowed.

    Raises
    ------
    Refused
        When one is off.
    """
    rows = []
    for sigma in GATE_SIGMAS:
        q, k, v = contenders.attention_inputs(GATE_LENGTH, HEADS, sigma)
        request = contenders.request(GATE_LENGTH)
        expected = attend_dense(q, k, v, request)
        rounding = 1e-6 + float(expected["lse"].abs().max()) * 2**-22
        for make in (contenders.headscope, contenders.eager_statistics, contenders.eager):
            with torch.no_grad():
                got = make(q, k, v)
            for name, values in got.items():
                # What eager attention loses in float32 is its own affair; ours is held to the bar.
                entropy = ENTROPY_BOUND if make is contenders.headscope else 100 * ENTROPY_BOUND
                bound = entropy if name == "entropy" else rounding
                rows.append(_compare(make.__name__, name, sigma, values, expected[name], bound))
        rows.append(
            _compare("sdpa", "z", sigma, contenders.sdpa(q, k, v)["z"], expected["z"], rounding)
        )
    rows.append(_check_model())
    return rows


def _check_model() -> dict[str, Any]:
    pattern = contenders.model_call("bridge_cache", GATE_LENGTH, 2)()[0].double()
    captured = contenders.model_call("capture", GATE_LENGTH, 2)()
    entropy = torch.from_numpy(captured["entropy"].values[0, 0])
    expected = -torch.xlogy(pattern, pattern).sum(dim=-1)
    # Two implementations of the whole model in float32, not one of attention.
    return _compare("capture", "entropy", 1.0, entropy, expected, 1e-4)


def _compare(
    contender: str, name: str, sigma: float, got: Tensor, expected: Tensor, bound: float
) -> dict[str, Any]:
    error = float((got.double() - expected.double()).abs().max())
    if name != "entropy":
        error /= max(float(expected.abs().max()), 1.0)
    if not error <= bound:
        raise Refused(
            f"gate: {name} of {contender} is off by {error:.2g}, allowed {bound:.2g}; "
            "nothing is measured, report this with `headscope --version`"
        )
    return {
        "contender": contender,
        "output": name,
        "logit_deviation": sigma,
        "error": error,
        "allowed": bound,
    }


def _time(group: str, length: int, heads: int, threads: int, rounds: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    names, absent = _fitting(group, length, heads)
    make = contenders.attention_call if group == "attention" else contenders.model_call
    calls = {name: make(name, length, heads) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if round_:
                times[name].append(1e3 * (time.perf_counter() - start))
    median = {name: statistics.median(each) for name, each in times.items()}
    base = median[names[0]]
    return {
        "length": length,
        "threads": threads,
        "median_ms": {name: round(each, 3) for name, each in median.items()},
        "ratio": {name: round(each / base, 3) for name, each in median.items()},
        "ratio_to": names[0],
        "spread_ms": {name: [round(min(t), 3), round(max(t), 3)] for name, t in times.items()},
        "not_run": absent,
        "load": _load(),
    }


def _weigh(length: int, heads: int, threads: int) -> dict[str, Any]:
    extra: dict[str, int | None] = {}
    absent: dict[str, str] = {}
    for group in ("attention", "model"):
        names, left_out = _fitting(group, length, heads)
        absent |= left_out
        for name in names:
            extra[name] = extra_bytes(group, name, length, heads, threads)
    return {"length": length, "threads": threads, "extra_bytes": extra, "not_run": absent}


def _fitting(group: str, length: int, heads: int) -> tuple[list[str], dict[str, str]]:
    names = contenders.ATTENTION if group == "attention" else contenders.MODEL
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fitting, absent = [], {}
    for name in names:
        need = MATRICES.get(name, 0) * heads * length**2 * 4
        if need > 0.6 * memory:
            absent[name] = f"needs about {need / 1e9:.0f} GB"
        else:
            fitting.append(name)
    return fitting, absent


def machine() -> dict[str, Any]:
    """Describe this machine, without its name."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
    }


def slug(described: Mapping[str, Any]) -> str:
    """Name a machine's result file after its processor.

    Examples
    --------
    >>> slug({"cpu": "Intel(R) Xeon(R) Processor"})
    'cpu-intel-r-xeon-r-processor'
    """
    return "cpu-" + re.sub(r"[^a-z0-9]+", "-", str(described["cpu"]).lower()).strip("-")


def save(result: Mapping[str, Any], path: Path) -> None:
    """Write a result as JSON, whole or not at all.

    Raises
    ------
    Refused
        When the file cannot be written.
    """
    write_text(path, json.dumps(result, indent=1) + "\n")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _load() -> float:
    return round(os.getloadavg()[0], 2)

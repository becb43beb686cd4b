"""Benchmark of a graphics processor: captures beside stock attention, in turn, in one process.

Needs torch and Triton and nothing else, so that a bare machine can run it: see benchmarks/gpu.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from headscope.app.bench import ceiling, contenders, gpu_contenders, machine
from headscope.app.bench.clock import Call, Timer, cuda, interleave
from headscope.app.bench.gate import compare, same_keys
from headscope.app.bench.gpu_bars import judge, plan
from headscope.app.bench.gpu_contenders import BASE2, CAPTURES, Case
from headscope.kernels.api import attend_dense
from headscope.kernels.errors import HeadscopeError, InvalidInput

GATE = (Case(769, 2, 4, 2, 64), Case(769, 1, 4, 4, 128))
GATE_SIGMAS = (1.0, 4.0)
LONG, LONG_ROUNDS = 65536, 3
ROUNDED = 1e-2
"""Largest error of z, relative to its largest value: weights and z pass through bfloat16."""
EAGER = 0.1
"""Largest error of eager attention, which rounds the logits themselves to bfloat16."""
ALLOWED = 1e-4
"""Largest error of everything else, which float32 sums of exact products reach with room."""

Report = Callable[[str], None]
Weigher = Callable[[Call], int]
Maker = Callable[[str, Tensor, Tensor, Tensor], Call]


def run(
    lengths: Sequence[int] = gpu_contenders.LENGTHS,
    sizes: Sequence[int] = gpu_contenders.SIZES,
    *,
    tokens: int = gpu_contenders.TOKENS,
    rounds: int = 5,
    progress: Report = lambda step: None,
) -> dict[str, Any]:
    """Check every contender against the float64 oracle, then measure time and memory.

    Parameters
    ----------
    lengths
        Tokens of a text, several.
    sizes
        Sizes of a head.
    tokens
        Tokens of a batch, the same at every length.
    rounds
        Calls of each contender that count, at most 3 from 65536 tokens on; one more warms up.
    progress
        Called with what is about to be measured.

    Returns
    -------
    ``machine``, ``setup``, ``gate``, ``rows``, ``bars`` and ``plan``: what the result file holds.

    Raises
    ------
    HeadscopeError
        When there is no CUDA device, or a contender disagrees with the oracle.
    """
    described = machine.describe_gpu()
    progress("gate")
    gate = check("cuda")
    rows = []
    for case in gpu_contenders.cases(lengths, sizes, tokens):
        progress(str(case))
        often = min(rounds, LONG_ROUNDS) if case.length >= LONG else rounds
        rows.append(measure(case, "cuda", described, rounds=often, timer=cuda, weigher=weigh))
    return {
        "schema": 2,
        "machine": {**described, "load_after": machine.load()},
        "setup": {
            "tokens": tokens,
            "causal": True,
            "dtype": "bfloat16",
            "columns": {name: list(added) for name, added in contenders.COLUMNS.items()},
            "rounds": rounds,
            "rounds_long": min(rounds, LONG_ROUNDS),
            "time": "median milliseconds of interleaved calls in one process, CUDA events",
            "memory": "peak bytes that the allocator handed out beyond the inputs, with results",
            "teraflops": "operations of a causal forward pass over the time, for every contender",
            "ceiling": "least time by the rates of tensor cores and exponential units",
            "sdpa": "torch's scaled_dot_product_attention as it chooses its kernel itself",
        },
        "gate": gate,
        "rows": rows,
        "bars": judge(rows),
        "plan": plan(rows),
    }


def check(device: str, make: Maker = gpu_contenders.make) -> list[dict[str, Any]]:
    """Compare every contender of the benchmark with the dense float64 oracle.

    Parameters
    ----------
    device
        Where the contenders run.
    make
        Prepares a contender; a shape that it refuses is left out, for it is not measured either.

    Returns
    -------
    A row for every contender, size of logits and output.

    Raises
    ------
    HeadscopeError
        When one is off, or when no capture could be checked.
    """
    rows = []
    for case in GATE:
        for sigma in GATE_SIGMAS:
            q, k, v = case.inputs(device, sigma)
            request = contenders.request(case.length)
            expected = attend_dense(q, k, v, replace(request, stats=(*request.stats, "pattern")))
            expected[BASE2] = expected["lse"] / math.log(2)
            for name in (*gpu_contenders.NAMES, "eager"):
                if name in gpu_contenders.SECOND:
                    # Its totals are not finished; the captures that they end in are checked.
                    continue
                try:
                    call = make(name, q, k, v)
                except HeadscopeError:
                    if name in CAPTURES:
                        raise
                    continue
                for output, values in call().items():
                    right = expected[output]
                    if output == "topk_key":
                        right, values = expected["topk"], same_keys(values, expected["pattern"])
                    allowed = ROUNDED if output == "z" else ALLOWED
                    allowed = EAGER if name == "eager" else allowed
                    row = compare(name, output, sigma, values, right, allowed)
                    rows.append({**row, "size": case.size})
    return rows


def measure(
    case: Case,
    device: str,
    described: Mapping[str, Any],
    *,
    rounds: int,
    timer: Timer,
    weigher: Weigher,
    make: Maker = gpu_contenders.make,
) -> dict[str, Any]:
    """Measure every contender at one shape.

    Parameters
    ----------
    case
        The shape.
    device
        Where to run.
    described
        The machine, for memory and ceilings.
    rounds
        Calls that count.
    timer, weigher
        Time and memory of one call.
    make
        Prepares a contender, or refuses it.

    Returns
    -------
    A row for the result file.

    Raises
    ------
    HeadscopeError
        When a capture's z is not that of torch's attention, at this very shape.
    """
    q, k, v = case.inputs(device)
    calls, absent = _prepare(gpu_contenders.NAMES, q, k, v, make)
    stock = calls["sdpa"]()["z"]
    for name in CAPTURES:
        if name in calls:
            _same_z(name, calls[name]()["z"], stock)
    del stock
    timed = interleave(calls, rounds, timer=timer)
    row = {
        **asdict(case),
        **timed,
        "teraflops": {
            name: round(_teraflops(case, median), 1) for name, median in timed["median_ms"].items()
        },
        "increment_ms": _increments(timed["median_ms"]),
        "ceiling_ms": _ceilings(case, described),
        "extra_bytes": {name: weigher(call) for name, call in calls.items()},
        "z_bytes": 4 * case.batch * case.heads * case.length * case.size,
        "not_run": absent,
    }
    del q, k, v, calls
    row["eager"] = _eager(case, device, described, rounds, timer, make)
    return row


def weigh(call: Call) -> int:
    """Measure the most bytes that the allocator hands out during a call, results included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    del result
    return peak - before


def _prepare(
    names: Sequence[str], q: Tensor, k: Tensor, v: Tensor, make: Maker
) -> tuple[dict[str, Call], dict[str, str]]:
    calls, absent = {}, {}
    for name in names:
        try:
            calls[name] = make(name, q, k, v)
        except HeadscopeError as reason:
            absent[name] = str(reason)
    return calls, absent


def _same_z(name: str, got: Tensor, stock: Tensor) -> None:
    # The first and the last head: an offset that overflows shows at the end.
    for batch, head in ((0, 0), (-1, -1)):
        ours, theirs = got[batch, head].float(), stock[batch, head].float()
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        if not error <= 2 * ROUNDED:
            raise InvalidInput(
                f"gate: z of {name} is {error:.2g} from torch's attention at {len(ours)} tokens; "
                "nothing is reported"
            )


def _eager(
    case: Case, device: str, described: Mapping[str, Any], rounds: int, timer: Timer, make: Maker
) -> dict[str, Any] | None:
    smaller = gpu_contenders.eager_case(case, int(described["gpu_memory_gb"] * 1e9))
    if smaller is None:
        return None
    calls, absent = _prepare(("sdpa", "eager"), *smaller.inputs(device), make)
    if absent:
        return {"batch": smaller.batch, "not_run": absent}
    return {"batch": smaller.batch, **interleave(calls, rounds, timer=timer)}


def _teraflops(case: Case, median: float) -> float:
    return ceiling.teraflops(case.length, case.batch, case.heads, case.size, median)


def _increments(median: Mapping[str, float]) -> dict[str, float]:
    """Say what each column costs beyond the one before it, the first beyond our forward pass."""
    steps = ["forward", *CAPTURES]
    return {
        after: round(median[after] - median[before], 3)
        for before, after in pairwise(steps)
        if before in median and after in median
    }


def _ceilings(case: Case, described: Mapping[str, Any]) -> dict[str, float] | None:
    rates = ceiling.RATES.get(tuple(described["capability"]))
    if rates is None:
        return None
    shape = (case.length, case.batch, case.heads, case.size)
    count = described["multiprocessors"]
    return {
        name: round(ceiling.milliseconds(*shape, operations, rates, count), 6)
        for name, operations in (("forward", ceiling.FORWARD), ("second", ceiling.SECOND))
    }

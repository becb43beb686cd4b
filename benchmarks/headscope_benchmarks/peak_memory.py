"""Peak memory: what one call needs beyond its inputs, on a CPU each in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from headscope.kernels.api import memory
from headscope.kernels.errors import ResourceLimit

WARMUP_LENGTH = 64

Case = tuple[str, str, int, int, int]
"""``module:function`` that prepares the call, and what it takes: a name, tokens and heads; torch
threads."""

Bytes = tuple[int, int | None]
"""Bytes beyond the inputs with the results, and of the results where they are tensors by name."""

FOLDER = str(Path(__file__).parents[1])
PROGRAM = (
    f"import sys; sys.path.insert(0, {FOLDER!r})\n"
    "from headscope_benchmarks import peak_memory; peak_memory.serve()"
)


def cuda_peak(call: Any) -> int:
    """Measure the most bytes that the allocator hands out during a call, results included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    del result
    return peak - before


def measure_peaks(cases: Sequence[Case]) -> Iterator[Bytes | None]:
    """Measure the largest resident memory during each call, less that before it.

    Every call has a fresh process, forked from one that has imported everything and done nothing.

    Yields
    ------
    For each case its bytes; None where the system does not say (it is read from Linux's ``/proc``).

    Raises
    ------
    ResourceLimit
        When a call fails, for example because memory ran out.
    """
    if not memory.measurable():
        yield from [None] * len(cases)
        return
    with subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            for case in cases:
                yield _request(server, case)
        finally:
            # The server ends with its input, also where nobody wants the rest.
            if server.stdin:
                server.stdin.close()


def _request(server: subprocess.Popen[str], case: Case) -> Bytes:
    """Request the server to measure one case."""
    assert server.stdin
    assert server.stdout
    assert server.stderr
    server.stdin.write(json.dumps(case) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    if not answer.startswith("["):
        server.stdin.close()
        last = (server.stderr.read().strip().splitlines() or ["it was killed"])[-1]
        raise ResourceLimit(f"memory of {case[1]} at {case[2]} tokens cannot be measured: {last}")
    extra, outputs = json.loads(answer)
    return extra, outputs


def serve() -> None:
    """Answer each case on the standard input with the bytes, from a fork of this process."""
    # Imported here, once: a fork has them and starts no thread before it measures.
    for name in ("baselines", "bridge"):
        import_module(f"headscope_benchmarks.{name}")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _answer(json.loads(line))
        if os.waitpid(child, 0)[1] != 0:
            sys.stdout.write("failed\n")
            sys.stdout.flush()


def _answer(case: Case) -> None:
    """Measure one case, print its bytes and end this process."""
    try:
        sys.stdout.write(json.dumps(measure_peak(*case)) + "\n")
        sys.stdout.flush()
        status = 0
    except BaseException as error:
        # A fork must end here, or two processes would read the same cases.
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
        status = 1
    os._exit(status)


def measure_peak(function: str, name: str, length: int, heads: int, threads: int) -> Bytes:
    """Measure one call in this process."""
    module, _, attribute = function.partition(":")
    make = getattr(import_module(module), attribute)
    torch.set_num_threads(threads)
    # Libraries and threads are loaded once, whatever the length.
    make(name, WARMUP_LENGTH, heads)()
    call = make(name, length, heads)
    memory.reset_peak()
    before = memory.resident()
    result = call()
    extra = memory.peak() - before
    outputs = None
    if isinstance(result, dict):
        outputs = sum(values.numel() * values.element_size() for values in result.values())
    return extra, outputs

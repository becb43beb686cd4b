"""Footprint: the memory that one call needs beyond its inputs, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from headscope.kernels.api import memory
from headscope.kernels.errors import InvalidInput

WARM = 64

Case = tuple[str, str, int, int, int]
"""Group (``attention``, ``model`` or ``context``), contender, tokens, heads, torch threads."""

Weight = tuple[int, int | None]
"""Bytes beyond the inputs with the results, and bytes of the results where they are tensors."""


def weigh(cases: Sequence[Case]) -> Iterator[Weight | None]:
    """Measure the largest resident memory during each call, less that before it.

    Every call has a fresh process, forked from one that has imported everything and done nothing.

    Yields
    ------
    For each case its bytes; None where the system does not tell (it is read from Linux's
    ``/proc``).

    Raises
    ------
    HeadscopeError
        When a call fails, for example because memory ran out.
    """
    if not memory.measurable():
        yield from [None] * len(cases)
        return
    program = "from headscope.app.bench.footprint import serve; serve()"
    with subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            for case in cases:
                yield _ask(server, case)
        finally:
            # The server ends with its input, also where nobody wants the rest.
            if server.stdin:
                server.stdin.close()


def _ask(server: subprocess.Popen[str], case: Case) -> Weight:
    assert server.stdin
    assert server.stdout
    assert server.stderr
    server.stdin.write(json.dumps(case) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    if not answer.startswith("["):
        server.stdin.close()
        last = (server.stderr.read().strip().splitlines() or ["it was killed"])[-1]
        raise InvalidInput(f"memory of {case[1]} at {case[2]} tokens cannot be measured: {last}")
    extra, outputs = json.loads(answer)
    return extra, outputs


def serve() -> None:
    """Answer each case on the standard input with the bytes, from a fork of this process."""
    # Imported here, once: a fork has them and starts no thread before it measures.
    import transformer_lens.model_bridge  # noqa: F401

    import headscope.app.bench.layers
    import headscope.probes  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _answer(json.loads(line))
        if os.waitpid(child, 0)[1] != 0:
            sys.stdout.write("failed\n")
            sys.stdout.flush()


def _answer(case: Case) -> None:
    try:
        sys.stdout.write(json.dumps(measure(*case)) + "\n")
        sys.stdout.flush()
        status = 0
    except BaseException as error:
        # A fork must end here, or two processes would read the same cases.
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
        status = 1
    os._exit(status)


def measure(group: str, name: str, length: int, heads: int, threads: int) -> Weight:
    """Measure one call in this process."""
    import torch

    from headscope.app.bench import contenders, context, layers

    made: dict[str, Callable[[str, int, int], Callable[[], Any]]] = {
        "attention": contenders.attention_call,
        "model": layers.model_call,
        "context": context.context_call,
    }
    torch.set_num_threads(threads)
    # Libraries and threads are loaded once, whatever the length.
    made[group](name, WARM, heads)()
    call = made[group](name, length, heads)
    memory.forget_peak()
    before = memory.resident()
    result = call()
    extra = memory.peak() - before
    outputs = None
    if group == "attention":
        outputs = sum(each.numel() * each.element_size() for each in result.values())
    return extra, outputs

"""The runner: checks every baseline, then measures time and memory, on a CPU or on a GPU.

Times are medians of interleaved calls, so that other load on the machine meets every baseline
alike; compare ratios, not milliseconds. Nothing is reported unless the numbers are right first.
A GPU needs torch and Triton and nothing else, so that a bare machine can run it.
"""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch

from headscope.kernels.compiled.library import library
from headscope.kernels.errors import InvalidInput
from headscope_benchmarks import baselines, cpu_rows, gpu_rows, machine
from headscope_benchmarks.shapes import COLUMNS, GPU_LENGTHS, GPU_SIZES, TOKENS, gpu_shapes
from headscope_benchmarks.targets import faster_forward, judge_cpu, judge_gpu
from headscope_benchmarks.timing import Report

LENGTHS = (1024, 2048, 4096)
LONG = (8192, 16384)
HEADS = 12
SETUP = {
    "time": (
        "median milliseconds of interleaved calls in one process; those that keep N×N matrices "
        "take turns with the first apart from the others, and their ratios are to its calls there"
    ),
    "memory": "bytes of peak resident memory beyond the inputs, a fresh process a call",
    "bridge": (
        "the attention layer of a TransformerBridge, given q, k and v in place of its projections, "
        "with hook_pattern cached: the same q, k, v in and z out as headscope, which returns the "
        "statistics of the column histogram"
    ),
    "model": (
        "one whole layer of GPT-2 with random weights; capture has the statistics of the column "
        "histogram, bridge_cache the pattern only"
    ),
}
GPU_SETUP = {
    "time": "median milliseconds of interleaved calls in one process, after synchronisation",
    "memory": "peak bytes that the allocator handed out beyond the inputs, with results",
    "teraflops": "operations of a causal forward pass over the time, for every contender",
    "ceiling": "least time by the rates of tensor cores and exponential units",
    "sdpa": "torch's scaled_dot_product_attention as it chooses its kernel itself",
}


def run_cpu(
    lengths: Sequence[int] = LENGTHS,
    *,
    heads: int = HEADS,
    rounds: int = 5,
    flex: bool = False,
    progress: Report = lambda step, done, total: None,
) -> dict[str, Any]:
    """Check every baseline against the float64 oracle, then measure time and extra memory.

    Parameters
    ----------
    lengths
        Tokens of the text, several.
    heads
        Heads, each of size 64; causal, float32.
    rounds
        Calls of each baseline that count, at most 5 from 8192 tokens on; one more warms up. Up to
        there with 1 thread as well as with all that this process uses.
    flex
        Whether to compile FlexAttention as well, some ten seconds for every length.
    progress
        Called with (step, done, total).

    Returns
    -------
    ``machine``, ``setup``, ``gate``, the rows ``attention``, ``memory`` and ``model``, and
    ``bars``: what the result file holds. Milliseconds and bytes.

    Raises
    ------
    HeadscopeError
        When a baseline disagrees with the oracle, or an argument makes no sense.
    """
    if not lengths or min(lengths) < 1 or heads < 1 or rounds < 1:
        raise InvalidInput("lengths, heads, rounds: each must be at least 1")
    lengths = sorted(set(lengths))
    allowed = torch.get_num_threads()
    counts = sorted({1, allowed})
    checked = cpu_rows.check(flex)
    load = machine.load()
    plan = [
        ("attention", length, count)
        for length in lengths
        for count in (counts if length < cpu_rows.LONG else counts[-1:])
    ]
    plan += [("model", length, counts[-1]) for length in lengths]
    rows: dict[str, list[dict[str, Any]]] = {"attention": [], "model": []}
    try:
        for done, (group, length, count) in enumerate(plan):
            progress("time", done, len(plan))
            rows[group].append(cpu_rows.measure_times(group, length, heads, count, rounds, flex))
        progress("time", len(plan), len(plan))
    finally:
        torch.set_num_threads(allowed)
    memory = cpu_rows.measure_memory(lengths, heads, counts[-1], progress)
    unit = library().pack is not None
    return {
        "schema": 2,
        "headscope": version("headscope"),
        "machine": {**machine.describe(), "load_before": load, "load_after": machine.load()},
        "setup": {
            "heads": heads,
            "size": 64,
            "batch": 1,
            "causal": True,
            "dtype": "float32",
            "columns": {name: list(added) for name, added in COLUMNS.items()},
            "engines": baselines.ENGINES,
            "compiled": baselines.compiled(),
            "matrix_unit": unit,
            "rounds": rounds,
            "rounds_long": min(rounds, cpu_rows.LONG_ROUNDS),
            **SETUP,
        },
        "gate": checked,
        "attention": rows["attention"],
        "memory": memory,
        "model": rows["model"],
        "bars": judge_cpu(checked, rows["attention"], memory, matrix_unit=unit),
    }


def run_gpu(
    lengths: Sequence[int] = GPU_LENGTHS,
    sizes: Sequence[int] = GPU_SIZES,
    *,
    tokens: int = TOKENS,
    rounds: int = 5,
    progress: Report = lambda step, done, total: None,
) -> dict[str, Any]:
    """Check every baseline against the float64 oracle, then measure time and memory.

    Parameters
    ----------
    lengths
        Tokens of a text, several.
    sizes
        Sizes of a head.
    tokens
        Tokens of a batch, the same at every length.
    rounds
        Calls of each baseline that count, at most 3 from 65536 tokens on; one more warms up.
    progress
        Called with (step, done, total).

    Returns
    -------
    ``machine``, ``setup``, ``gate``, ``rows``, ``bars`` and ``plan``: what the result file holds.

    Raises
    ------
    HeadscopeError
        When there is no CUDA device, or a baseline disagrees with the oracle.
    """
    described = machine.describe_gpu()
    checked = gpu_rows.check("cuda")
    shapes, rows = list(gpu_shapes(lengths, sizes, tokens)), []
    for done, shape in enumerate(shapes):
        progress(str(shape), done, len(shapes))
        rows.append(gpu_rows.measure(shape, "cuda", described, rounds=rounds))
    return {
        "schema": 2,
        "machine": {**described, "load_after": machine.load()},
        "setup": {
            "tokens": tokens,
            "causal": True,
            "dtype": "bfloat16",
            "columns": {name: list(added) for name, added in COLUMNS.items()},
            "rounds": rounds,
            "rounds_long": min(rounds, gpu_rows.LONG_ROUNDS),
            **GPU_SETUP,
        },
        "gate": checked,
        "rows": rows,
        "bars": judge_gpu(rows),
        "plan": faster_forward(rows),
    }

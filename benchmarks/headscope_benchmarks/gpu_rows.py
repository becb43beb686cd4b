"""What is measured on a GPU: errors of every baseline, then times and memory at one shape."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import pairwise
from math import log
from typing import Any

import torch
from torch import Tensor

from headscope.kernels.errors import HeadscopeError
from headscope_benchmarks import gate, roofline
from headscope_benchmarks.baselines import GPU, GPU_CAPTURES, Maker, make_on_gpu, prepare
from headscope_benchmarks.peak_memory import cuda_peak
from headscope_benchmarks.shapes import Shape, eager_shape
from headscope_benchmarks.timing import Call, interleave
from headscope_benchmarks.triton_passes import BASE2, SECOND

GATE = (Shape(769, 2, 4, 2, 64), Shape(769, 1, 4, 4, 128))
GATE_SIGMAS = (1.0, 4.0)
LONG, LONG_ROUNDS = 65536, 3
ROUNDED = 1e-2
"""Largest error of z, relative to its largest value: weights and z pass through bfloat16."""
EAGER = 0.1
"""Largest error of eager attention, which rounds the logits themselves to bfloat16."""
ALLOWED = 1e-4
"""Largest error of everything else, which float32 sums of exact products reach with room."""


def check(device: str, maker: Maker = make_on_gpu) -> list[dict[str, Any]]:
    """Compare every baseline with the dense float64 oracle.

    Parameters
    ----------
    device
        Where the baselines run.
    maker
        Prepares a baseline; a shape that it refuses is left out, for it is not measured either.

    Returns
    -------
    A row for every baseline, size of logits and output.

    Raises
    ------
    HeadscopeError
        When one is off, or when a capture cannot be checked.
    """

    def allowed(name: str, output: str) -> float:
        return EAGER if name == "eager" else ROUNDED if output == "z" else ALLOWED

    # Totals of a second pass alone are not finished; the captures that they end in are checked.
    names = [name for name in (*GPU, "eager") if name not in SECOND]
    rows = []
    for shape in GATE:
        for sigma in GATE_SIGMAS:
            tensors = shape.inputs(device, torch.bfloat16, sigma)
            expected = gate.oracle(*tensors)
            expected[BASE2] = expected["lse"] / log(2)
            calls, absent = prepare(names, *tensors, maker)
            for name in GPU_CAPTURES:
                if name in absent:
                    raise HeadscopeError(absent[name])
            checked = gate.check(calls, expected, sigma, allowed)
            rows += [{**row, "size": shape.size} for row in checked]
    return rows


def measure(
    shape: Shape,
    device: str,
    described: Mapping[str, Any],
    *,
    rounds: int,
    peak: Callable[[Call], int] = cuda_peak,
    maker: Maker = make_on_gpu,
) -> dict[str, Any]:
    """Measure every baseline at one shape.

    Parameters
    ----------
    shape
        The shape.
    device
        Where to run.
    described
        The machine, for memory and ceilings.
    rounds
        Calls that count, at most 3 from 65536 tokens on.
    peak
        Measures the memory of one call.
    maker
        Prepares a baseline, or refuses it.

    Returns
    -------
    A row for the result file.

    Raises
    ------
    HeadscopeError
        When a capture's z is not that of torch's attention, at this very shape.
    """
    rounds = min(rounds, LONG_ROUNDS) if shape.length >= LONG else rounds
    tensors = shape.inputs(device, torch.bfloat16)
    calls, absent = prepare(GPU, *tensors, maker)
    stock = calls["sdpa"]()["z"]
    for name in GPU_CAPTURES:
        if name in calls:
            _check_z(name, calls[name]()["z"], stock)
    del stock
    timed = interleave(calls, rounds)
    median = timed["median_ms"]
    row = {
        **asdict(shape),
        **timed,
        "teraflops": {
            name: round(roofline.teraflops(shape, value), 1) for name, value in median.items()
        },
        "increment_ms": {
            after: round(median[after] - median[before], 3)
            for before, after in pairwise(["forward", *GPU_CAPTURES])
            if before in median and after in median
        },
        "ceiling_ms": roofline.ceilings(shape, described),
        "extra_bytes": {name: peak(call) for name, call in calls.items()},
        "z_bytes": 4 * shape.batch * shape.heads * shape.length * shape.size,
        "not_run": absent,
        "eager": None,
    }
    del tensors, calls
    smaller = eager_shape(shape, int(described["gpu_memory_gb"] * 1e9))
    if smaller is not None:
        tensors = smaller.inputs(device, torch.bfloat16)
        calls, absent = prepare(("sdpa", "eager"), *tensors, maker)
        timed = {"not_run": absent} if absent else interleave(calls, rounds)
        row["eager"] = {"batch": smaller.batch, **timed}
    return row


def _check_z(name: str, z: Tensor, stock: Tensor) -> None:
    """Compare the first and the last head: an offset that overflows shows at the end."""
    for batch, head in ((0, 0), (-1, -1)):
        actual, expected = z[batch, head].float(), stock[batch, head].float()
        error = float((actual - expected).abs().max() / expected.abs().max())
        if not error <= 2 * ROUNDED:
            raise HeadscopeError(
                f"gate: z of {name} is {error:.2g} from torch's attention at {len(actual)} tokens; "
                "nothing is reported"
            )

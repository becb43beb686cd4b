"""Roofline: the least time that attention can take on a GPU, from its rates.

A causal text has N (N + 1) / 2 scores a head. Each costs 4 · size floating-point operations in a
forward pass (q·k and weight·v), 2 · size in a pass that recomputes q·k alone, and one exponential
in both. Whichever unit is busiest sets the ceiling.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headscope_benchmarks.shapes import Shape

FORWARD = 4
SECOND = 2
"""Floating-point operations per score and channel of a forward pass, and of q·k alone."""


@dataclass(frozen=True)
class Rates:
    """Rates of a multiprocessor a clock cycle.

    Parameters
    ----------
    tensor
        Floating-point operations of the tensor cores in bfloat16.
    exponentials
        Exponentials.
    clock
        Cycles a second under load, not the highest that is advertised.
    """

    tensor: int
    exponentials: int
    clock: float


RATES = {(8, 0): Rates(2048, 16, 1.41e9), (9, 0): Rates(4096, 16, 1.76e9)}
"""By compute capability: A100, H100 and H200."""


def scores(shape: Shape) -> int:
    """Count the scores of causal attention.

    Examples
    --------
    >>> scores(Shape(length=4, batch=1, heads=2, kv_heads=2, size=64))
    20
    """
    return shape.batch * shape.heads * shape.length * (shape.length + 1) // 2


def teraflops(shape: Shape, milliseconds: float) -> float:
    """Convert the time of a call to TFLOP/s of a causal forward pass, whatever else it computes.

    Examples
    --------
    >>> round(teraflops(Shape(131072, 1, 32, 32, 128), milliseconds=210.0))
    670
    """
    return FORWARD * shape.size * scores(shape) / milliseconds / 1e9


def milliseconds(shape: Shape, operations: int, rates: Rates, count: int) -> float:
    """Bound the time of one pass from below, by the busiest of tensor cores and exponential units.

    Parameters
    ----------
    shape
        The attention call.
    operations
        ``FORWARD`` or ``SECOND``.
    rates
        Rates of one multiprocessor.
    count
        Number of multiprocessors.

    Examples
    --------
    >>> round(milliseconds(Shape(131072, 1, 32, 32, 128), FORWARD, RATES[9, 0], 132), 1)
    147.9
    """
    cycles = max(operations * shape.size / rates.tensor, 1 / rates.exponentials)
    return 1e3 * scores(shape) * cycles / (count * rates.clock)


def ceilings(shape: Shape, described: Mapping[str, Any]) -> dict[str, float] | None:
    """Bound a forward and a second pass on a machine; None where its rates are not known."""
    rates = RATES.get(tuple(described["capability"]))
    if rates is None:
        return None
    return {
        name: round(milliseconds(shape, operations, rates, described["multiprocessors"]), 6)
        for name, operations in (("forward", FORWARD), ("second", SECOND))
    }

"""Ceilings: the least time that attention can take on a graphics processor, from its rates.

A causal text has N (N + 1) / 2 scores a head. Each costs 4 · size floating-point operations in a
forward pass (q·k and weight·v), 2 · size in a pass that recomputes q·k alone, and one exponential
in both. Whichever unit is busiest sets the ceiling.
"""

from __future__ import annotations

from dataclasses import dataclass

FORWARD = 4
SECOND = 2
"""Floating-point operations per score and channel of a forward pass, and of q·k alone."""


@dataclass(frozen=True)
class Rates:
    """What a multiprocessor does in a clock cycle.

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


def scores(length: int, batch: int, heads: int) -> int:
    """Count the scores of causal attention.

    Examples
    --------
    >>> scores(length=4, batch=1, heads=2)
    20
    """
    return batch * heads * length * (length + 1) // 2


def teraflops(length: int, batch: int, heads: int, size: int, milliseconds: float) -> float:
    """Convert the time of a call to TFLOP/s of a causal forward pass, whatever else it computes.

    Examples
    --------
    >>> round(teraflops(131072, 1, 32, 128, milliseconds=210.0))
    670
    """
    return FORWARD * size * scores(length, batch, heads) / milliseconds / 1e9


def milliseconds(
    length: int, batch: int, heads: int, size: int, operations: int, rates: Rates, count: int
) -> float:
    """Bound the time of one pass from below.

    Parameters
    ----------
    length, batch, heads, size
        The attention call.
    operations
        ``FORWARD`` or ``SECOND``.
    rates
        Rates of one multiprocessor.
    count
        Number of multiprocessors.

    Returns
    -------
    Milliseconds that the busiest of tensor cores and exponential units needs.

    Examples
    --------
    >>> round(milliseconds(131072, 1, 32, 128, FORWARD, RATES[9, 0], 132), 1)
    147.9
    """
    cycles = max(operations * size / rates.tensor, 1 / rates.exponentials)
    return 1e3 * scores(length, batch, heads) * cycles / (count * rates.clock)

"""Contenders on a graphics processor: stock kernels, our passes alone, and captures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from headscope.app.bench import contenders
from headscope.app.bench.clock import Call
from headscope.kernels import attention
from headscope.kernels.api import AttentionSpec
from headscope.kernels.errors import InvalidInput
from headscope.kernels.panels.row_panels import Panels
from headscope.kernels.statistics import load

BASE2 = "lse, base 2"
"""What our forward pass calls its normaliser, in the units that it leaves it in."""

TOKENS = 1 << 17
LENGTHS = tuple(1 << power for power in range(10, 18))
SIZES = (64, 128)
HEADS = ((32, 32), (32, 8))
EAGER_LENGTH = 8192
EAGER_MATRICES = 4
"""N×N matrices of bfloat16 that eager attention holds at once, its float32 softmax counting two."""
STOCK = {
    "sdpa": None,
    "sdpa_flash": SDPBackend.FLASH_ATTENTION,
    "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION,
}
"""Torch's fused attention: as it chooses itself, which is the base, and two of its kernels."""
FORWARD = ("forward", "forward_rows")
"""Our fused forward pass alone: z and lse, and with maximum and entropy."""
SECOND = ("second/columns", "second/top8")
"""Our passes over the weights alone, given lse: received and pooled, and all that they can."""
CAPTURES = tuple(f"triton/{column}" for column in contenders.COLUMNS)
PLANS = ("fused/top8", "stock/top8")
"""Every statistic after our forward pass and after torch's, for the planner's table."""
NAMES = (*STOCK, "flex_aux", *FORWARD, *SECOND, *CAPTURES, *PLANS)


@dataclass(frozen=True)
class Case:
    """One shape of causal attention in bfloat16.

    Parameters
    ----------
    length
        Tokens of a text.
    batch
        Texts.
    heads, kv_heads
        Query heads, and heads of keys and values.
    size
        Size of a head.
    """

    length: int
    batch: int
    heads: int
    kv_heads: int
    size: int

    def inputs(self, device: str, sigma: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """Draw q, k and v (batch, head, token, size); logits have a standard deviation."""
        draw = torch.Generator(device).manual_seed(self.length)

        def normal(heads: int) -> Tensor:
            shape = (self.batch, heads, self.length, self.size)
            return torch.randn(shape, generator=draw, device=device, dtype=torch.bfloat16)

        return sigma * normal(self.heads), normal(self.kv_heads), normal(self.kv_heads)


def cases(
    lengths: Sequence[int] = LENGTHS, sizes: Sequence[int] = SIZES, tokens: int = TOKENS
) -> Iterator[Case]:
    """List the shapes: every length at the same number of tokens in all.

    Examples
    --------
    >>> next(cases(lengths=(4096,)))
    Case(length=4096, batch=32, heads=32, kv_heads=32, size=64)
    """
    for size in sizes:
        for heads, kv_heads in HEADS:
            for length in lengths:
                yield Case(length, max(tokens // length, 1), heads, kv_heads, size)


def eager_case(case: Case, memory: int) -> Case | None:
    """Shrink the batch of a case until eager attention fits; None where it cannot.

    Parameters
    ----------
    case
        The shape that the others are measured at.
    memory
        Bytes of memory of the device.

    Examples
    --------
    >>> eager_case(Case(8192, 16, 32, 32, 128), memory=140 * 10**9).batch
    4
    """
    if case.length > EAGER_LENGTH:
        return None
    one = EAGER_MATRICES * 2 * case.heads * case.length**2
    batch = 1
    while 2 * batch <= case.batch and 2 * batch * one <= 0.6 * memory:
        batch *= 2
    if batch * one > 0.6 * memory:
        return None
    return Case(case.length, batch, case.heads, case.kv_heads, case.size)


def make(name: str, q: Tensor, k: Tensor, v: Tensor) -> Call:
    """Prepare a contender on given queries, keys and values.

    Parameters
    ----------
    name
        One of ``NAMES``, or ``eager``.
    q, k, v
        Tensors (batch, head, token, size), fewer heads in k and v.

    Returns
    -------
    A call without arguments; it returns what the contender knows, by name.

    Raises
    ------
    InvalidInput
        When this machine cannot run it; the message says why.
    """
    if name == "flex_aux":
        return contenders.make(name, q, k, v)
    first, _, column = name.partition("/")
    made: Any = contenders.eager
    if name in STOCK:
        made = partial(_stock, backend=STOCK[name])
    elif name in FORWARD:
        made = partial(_forward, rows=name == "forward_rows")
    elif name in SECOND:
        made = _second(q, k, v, column)
    elif name in PLANS:
        made = partial(_planned, forward=first, column=column)
    elif name in CAPTURES:
        made = partial(_capture, column=column)

    def call() -> dict[str, Tensor]:
        with torch.no_grad():
            result: dict[str, Tensor] = made(q, k, v)
            return result

    try:
        call()
    except RuntimeError as error:
        # A shape that a kernel does not take, or memory: the result says so by name.
        raise InvalidInput(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
    return call


def _stock(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend | None) -> dict[str, Tensor]:
    grouped = q.shape[1] != k.shape[1]
    attend = partial(torch.nn.functional.scaled_dot_product_attention, is_causal=True)
    if backend is None:
        return {"z": attend(q, k, v, enable_gqa=grouped)}
    with sdpa_kernel(backend):
        return {"z": attend(q, k, v, enable_gqa=grouped)}


def _capture(q: Tensor, k: Tensor, v: Tensor, column: str) -> dict[str, Tensor]:
    return attention.attend(q, k, v, contenders.request(q.shape[2], column), engine="triton")


def _forward(q: Tensor, k: Tensor, v: Tensor, rows: bool) -> dict[str, Tensor]:
    # Triton is not there on every machine that checks this file.
    from headscope.kernels.triton import first_pass

    done = first_pass.run(_launch(q, k, v), max_weight=rows, entropy=rows)
    found = {"z": done.z, BASE2: done.lse, "max_weight": done.max_weight, "entropy": done.entropy}
    return {name: each for name, each in found.items() if each is not None}


def _second(q: Tensor, k: Tensor, v: Tensor, column: str) -> Any:
    from headscope.kernels.triton import first_pass
    from headscope.kernels.triton.plan import PASSES, ways

    lse = first_pass.run(_launch(q, k, v)).lse
    request = contenders.request(q.shape[2], column)
    only = contenders.COLUMNS[column] if column == "columns" else request.stats
    taken = ways(only, stock=True)
    if not PASSES.keys() & taken.values():
        raise InvalidInput(f"second pass: no Triton kernel computes any of {', '.join(only)}")

    def attend(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        launch = _launch(q, k, v)
        found: dict[str, Tensor] = {}
        for way, later in PASSES.items():
            wanted = [name for name in only if taken[name] == way]
            if wanted:
                found |= later(launch, lse, wanted, request)
        return found

    return attend


def _planned(q: Tensor, k: Tensor, v: Tensor, forward: Any, column: str) -> dict[str, Tensor]:
    from headscope.kernels.triton.engine import TritonEngine

    request = contenders.request(q.shape[2], column)
    panels = Panels(q, k, v, AttentionSpec().fit(q, k), request)
    chosen = [load(name) for name in ("z", *request.stats)]
    results: dict[str, Tensor] = TritonEngine(panels, forward).run(chosen)
    return results


def _launch(q: Tensor, k: Tensor, v: Tensor) -> Any:
    from headscope.kernels.triton.launch import Launch

    return Launch(q, k, v, AttentionSpec().fit(q, k))

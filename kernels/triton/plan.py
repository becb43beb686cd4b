"""Pass that computes each statistic on the GPU, and choice of the forward pass."""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from headscope.kernels import statistics
from headscope.kernels.attention_spec import AttentionSpec
from headscope.kernels.statistic import TritonPass
from headscope.kernels.triton import column_pass, gather_pass, row_pass, topk_pass
from headscope.kernels.triton.configuration import padded
from headscope.kernels.triton.launch import LARGEST_BYTES

Way = TritonPass | Literal["panels"]
Forward = Literal["fused", "stock"]

PASSES: Mapping[TritonPass, Callable[..., dict[str, Tensor]]] = {
    "columns": column_pass.run,
    "rows": row_pass.run,
    "gathers": gather_pass.run,
    "topk": topk_pass.run,
}
"""Passes over the weights after the forward pass: called with launch, lse, names and request."""
STOCK = frozenset({"z", "lse", "learned_sink_mass"})
"""Statistics of the forward pass that torch's own leaves as well."""
MEASURED = Path(__file__).with_name("measured.json")
"""Forward pass that was faster, by architecture and head size; without an entry the fused one."""


def ways(names: Iterable[str], *, stock: bool = False) -> dict[str, Way]:
    """Choose the pass that computes each statistic, from its declaration.

    >>> ways(("entropy", "received", "column_norm"))
    {'entropy': 'forward', 'received': 'columns', 'column_norm': 'panels'}
    """
    chosen: dict[str, Way] = {}
    for name in names:
        left = not stock or name in STOCK
        passes = [
            triton_pass
            for triton_pass in statistics.load(name).triton
            if left or triton_pass != "forward"
        ]
        chosen[name] = passes[0] if passes else "panels"
    return chosen


def declared(triton_pass: TritonPass) -> frozenset[str]:
    """Return the statistics that declare a pass."""
    return frozenset(
        name for name in statistics.names() if triton_pass in statistics.load(name).triton
    )


@cache
def measured() -> Mapping[str, Mapping[str, Forward]]:
    """Read the table of measured forward passes."""
    table: Mapping[str, Mapping[str, Forward]] = json.loads(MEASURED.read_text())
    return table


def forward_for(arch: int, size: int, dtype: torch.dtype, spec: AttentionSpec) -> Forward:
    """Choose the forward pass: torch's own where it was measured to be faster and can do it."""
    entry = measured().get(str(arch), {}).get(str(padded(size)), "fused")
    return entry if dtype != torch.float32 and is_stock(spec) else "fused"


def is_stock(spec: AttentionSpec) -> bool:
    """Whether torch's own attention computes this variant: causal order or none, no extras."""
    extras = (
        spec.window, spec.softcap, spec.key_mask, spec.query_mask, spec.lengths,
        spec.slopes, spec.bias, spec.sinks, spec.edits,
    )  # fmt: skip
    return not spec.sigmoid and all(extra is None for extra in extras)


def fits(q: Tensor, v: Tensor) -> bool:
    """Whether the tiles of a head fit in registers."""
    return all(x.shape[3] * x.element_size() <= LARGEST_BYTES for x in (q, v))

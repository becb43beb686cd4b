"""Which way each statistic takes on the GPU, and which forward pass: stated, never guessed at."""

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

    Parameters
    ----------
    names
        Names of statistics.
    stock
        Whether the forward pass is torch's own, which leaves z and lse only.

    Returns
    -------
    For every name a pass of the Triton engine, or ``panels``: torch on the same device, in row
    panels, correct but not written for a GPU.

    Examples
    --------
    >>> ways(("entropy", "received", "column_norm"))
    {'entropy': 'forward', 'received': 'columns', 'column_norm': 'panels'}
    """
    chosen: dict[str, Way] = {}
    for name in names:
        left = not stock or name in STOCK
        passes = [way for way in statistics.load(name).triton if left or way != "forward"]
        chosen[name] = passes[0] if passes else "panels"
    return chosen


def declared(way: TritonPass) -> frozenset[str]:
    """Name the statistics that declare a pass.

    Examples
    --------
    >>> sorted(declared("topk"))
    ['topk', 'topk_key']
    """
    return frozenset(name for name in statistics.names() if way in statistics.load(name).triton)


@cache
def measured() -> Mapping[str, Mapping[str, Forward]]:
    """Read the table of measured forward passes."""
    table: Mapping[str, Mapping[str, Forward]] = json.loads(MEASURED.read_text())
    return table


def forward_for(arch: int, size: int, dtype: torch.dtype, spec: AttentionSpec) -> Forward:
    """Choose the forward pass: torch's own where it was measured to be faster and can do it.

    Parameters
    ----------
    arch
        Compute capability, 90 for 9.0.
    size
        Head size.
    dtype
        Type of q, k and v.
    spec
        How scores become weights.

    Examples
    --------
    >>> forward_for(80, 64, torch.bfloat16, AttentionSpec(softcap=30.0))
    'fused'
    """
    entry = measured().get(str(arch), {}).get(str(padded(size)), "fused")
    return entry if dtype != torch.float32 and is_stock(spec) else "fused"


def is_stock(spec: AttentionSpec) -> bool:
    """Tell whether torch's own attention computes this variant: causal order or none, no extras.

    Examples
    --------
    >>> is_stock(AttentionSpec()), is_stock(AttentionSpec(window=8))
    (True, False)
    """
    extras = (
        spec.window, spec.softcap, spec.key_mask, spec.query_mask, spec.lengths,
        spec.slopes, spec.bias, spec.sinks, spec.edits,
    )  # fmt: skip
    return not spec.sigmoid and all(extra is None for extra in extras)


def fits(q: Tensor, v: Tensor) -> bool:
    """Tell whether the tiles of a head fit in registers.

    Examples
    --------
    >>> fits(torch.zeros(1, 1, 1, 128), torch.zeros(1, 1, 1, 512))
    False
    """
    return all(x.shape[3] * x.element_size() <= LARGEST_BYTES for x in (q, v))

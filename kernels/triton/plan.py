"""Which way each statistic takes on the GPU, and which forward pass: stated, never guessed at."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from headscope.kernels.attention_spec import AttentionSpec
from headscope.kernels.request import Request
from headscope.kernels.triton import column_pass, gather_pass, row_pass, topk_pass
from headscope.kernels.triton.configuration import padded
from headscope.kernels.triton.launch import LARGEST_BYTES, Launch

Way = Literal["forward", "columns", "rows", "gathers", "leaders", "panels"]
Forward = Literal["fused", "stock"]


class Pass(NamedTuple):
    """A pass over the weights: what it computes, and the function that does."""

    names: frozenset[str]
    run: Callable[[Launch, Tensor, Collection[str], Request], dict[str, Tensor]]


FORWARD = frozenset({"z", "lse", "max_weight", "entropy", "sink_mass"})
"""Statistics that the fused forward pass leaves."""
PASSES: dict[Way, Pass] = {
    "columns": Pass(column_pass.NAMES, column_pass.run),
    "rows": Pass(row_pass.NAMES, row_pass.run),
    "gathers": Pass(gather_pass.NAMES, gather_pass.run),
    "leaders": Pass(topk_pass.NAMES, topk_pass.run),
}
"""Passes over the weights after the forward pass, given its normalisers."""
MEASURED = Path(__file__).with_name("measured.json")
"""Forward pass that was faster, by architecture and head size; without an entry the fused one."""


def ways(names: Iterable[str], *, stock: bool = False) -> dict[str, Way]:
    """Tell which pass computes each statistic.

    Parameters
    ----------
    names
        Names of statistics.
    stock
        Whether the forward pass is torch's own, which leaves z and lse only.

    Returns
    -------
    For every name ``forward`` (the fused forward pass), a Triton pass over its weights (``columns``
    of keys, ``rows`` of queries, ``gathers`` at a few keys, ``leaders`` for the largest), or
    ``panels`` (torch on the same device, in row panels: correct, but not written for a GPU).

    Examples
    --------
    >>> ways(("entropy", "received", "topk"))
    {'entropy': 'forward', 'received': 'columns', 'topk': 'leaders'}
    """
    left = frozenset({"z", "lse", "sink_mass"}) if stock else FORWARD
    found: dict[str, Way] = {}
    for name in names:
        later = [way for way, each in PASSES.items() if name in each.names]
        found[name] = "forward" if name in left else later[0] if later else "panels"
    return found


@cache
def measured() -> Mapping[str, Mapping[str, Forward]]:
    """Read the table of measured forward passes."""
    table: Mapping[str, Mapping[str, Forward]] = json.loads(MEASURED.read_text())
    return table


def forward_for(arch: int, size: int, dtype: torch.dtype, variant: AttentionSpec) -> Forward:
    """Choose the forward pass: torch's own where it was measured to be faster and can do it.

    Parameters
    ----------
    arch
        Compute capability, 90 for 9.0.
    size
        Head size.
    dtype
        Type of q, k and v.
    variant
        How scores become weights.

    Examples
    --------
    >>> forward_for(80, 64, torch.bfloat16, AttentionSpec(softcap=30.0))
    'fused'
    """
    entry = measured().get(str(arch), {}).get(str(padded(size)), "fused")
    return entry if dtype != torch.float32 and is_stock(variant) else "fused"


def is_stock(variant: AttentionSpec) -> bool:
    """Tell whether torch's own attention computes this variant: causal order or none, no extras.

    Examples
    --------
    >>> is_stock(AttentionSpec()), is_stock(Variant(window=8))
    (True, False)
    """
    extras = (
        variant.window, variant.softcap, variant.key_mask, variant.query_mask, variant.lengths,
        variant.slopes, variant.bias, variant.sinks, variant.edits,
    )  # fmt: skip
    return not variant.sigmoid and all(extra is None for extra in extras)


def fits(q: Tensor, v: Tensor) -> bool:
    """Tell whether the tiles of a head fit in registers.

    Examples
    --------
    >>> fits(torch.zeros(1, 1, 1, 128), torch.zeros(1, 1, 1, 512))
    False
    """
    return all(x.shape[3] * x.element_size() <= LARGEST_BYTES for x in (q, v))

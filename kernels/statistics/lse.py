"""Log of the softmax normaliser.

With it, and q and k, any single weight can be recomputed: P_ij = exp(s_ij - lse_i). It is -inf at a
query that sees no key.
"""

import torch
from torch import Tensor

from headscope.kernels.dense_attention import Whole
from headscope.kernels.panels.panel import Panel
from headscope.kernels.statistic import Statistic


def of_panel(panel: Panel) -> Tensor:
    """Take it from the panel, which reads it off the largest weight."""
    return panel.lse


def of_whole(whole: Whole) -> Tensor:
    """Sum the exponentials of all logits, a learned sink's among them."""
    return torch.logsumexp(whole.outcomes, dim=-1)


STATISTIC = Statistic(
    name="lse",
    dims=("query",),
    merge="logsumexp",
    units="nats",
    low=None,
    high=None,
    scale="diverging",
    formula="lse_i = log Σ_j exp(s_ij)",
    source="Self-attention Does Not Need O(n²) Memory (Rabe and Staats 2021)",
    execution="E0",
    doc=__doc__,
    panel=of_panel,
    dense=of_whole,
    distribution=True,
    reductions=("surplus",),
    empty=float("-inf"),
)

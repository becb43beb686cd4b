"""Log of the softmax normaliser.

With it, and q and k, any single weight can be recomputed: P_ij = exp(s_ij - lse_i). It is -inf at a
query that sees no key.
"""

from operator import attrgetter

import torch
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.statistic import Statistic


def from_dense(dense: DenseAttention) -> Tensor:
    """Sum the exponentials of all logits, a learned sink's among them."""
    return torch.logsumexp(dense.outcomes, dim=-1)


STATISTIC = Statistic(
    name="lse",
    dims=("query",),
    merge="logsumexp",
    units="nats",
    low=None,
    scale="diverging",
    formula="lse_i = log Σ_j exp(s_ij)",
    source="Self-attention Does Not Need O(n²) Memory (Rabe and Staats 2021)",
    triton=("forward",),
    doc=__doc__,
    panel=attrgetter("lse"),
    dense=from_dense,
    distribution=True,
    reductions=("lse_minus_max",),
    empty=float("-inf"),
)

"""Entropy of the attention weights of a query.

0 where one key gets everything, log(n) where n visible keys share evenly. A learned sink counts as
one more outcome.
"""

from operator import attrgetter

import torch
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.statistic import Statistic


def from_dense(dense: DenseAttention) -> Tensor:
    """Sum -P log P over all outcomes."""
    shares = dense.outcomes.softmax(dim=-1)
    return -torch.xlogy(shares, shares).sum(dim=-1)


STATISTIC = Statistic(
    name="entropy",
    dims=("query",),
    merge="entropy",
    units="nats",
    formula="H_i = -Σ_j P_ij log P_ij",
    source="Attention Entropy is a Key Factor (Zhang et al. 2024)",
    triton=("forward", "rows"),
    doc=__doc__,
    panel=attrgetter("entropy"),
    dense=from_dense,
    reductions=("entropy",),
    distribution=True,
)

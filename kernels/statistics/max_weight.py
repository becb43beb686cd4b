"""Largest attention weight of a query.

Its mean over queries is the confidence of a head.
"""

from operator import attrgetter

from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.statistic import Statistic


def from_dense(dense: DenseAttention) -> Tensor:
    """Sort each row and take its last weight."""
    return dense.weights.sort(dim=-1).values[..., -1]


STATISTIC = Statistic(
    name="max_weight",
    dims=("query",),
    merge="maximum",
    units="share",
    high=1.0,
    formula="max_j P_ij",
    source="Analyzing Multi-Head Self-Attention (Voita et al. 2019)",
    triton=("forward",),
    doc=__doc__,
    panel=attrgetter("max_prob"),
    dense=from_dense,
    reductions=("max_prob",),
)

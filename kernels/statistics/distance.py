"""Mean distance back that a query attends to.

Distance between query and key weighted by attention, in tokens, clipped at ``clip``: windowed
average attention distance (WAAD). Without causal order, the distance to either side.
"""

from operator import attrgetter

import torch
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.statistic import Statistic


def from_dense(dense: DenseAttention) -> Tensor:
    """Contract weights and distances."""
    return torch.einsum("bhqk,qk->bhq", dense.weights, dense.distances)


STATISTIC = Statistic(
    name="distance",
    dims=("query",),
    merge="average",
    units="tokens",
    formula="μ_i = Σ_j P_ij min(|i - j|, clip)",
    source="Attention Illuminates LLM Reasoning (Li et al. 2025)",
    triton=("rows",),
    doc=__doc__,
    panel=attrgetter("mean_distance"),
    dense=from_dense,
    reductions=("mean_distance",),
    distribution=True,
    positional=True,
)

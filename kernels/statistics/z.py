"""Output of the head before the output projection.

The values averaged by the attention weights, in float32.
"""

from operator import attrgetter

import torch
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.statistic import Statistic


def from_dense(dense: DenseAttention) -> Tensor:
    """Contract weights and values."""
    return torch.einsum("bhqk,bhkd->bhqd", dense.weights, dense.values)


STATISTIC = Statistic(
    name="z",
    dims=("query", "size"),
    merge="average",
    units="activation",
    low=None,
    scale="diverging",
    formula="z_i = Σ_j P_ij v_j",
    source="Attention Is All You Need (Vaswani et al. 2017)",
    triton=("forward",),
    doc=__doc__,
    panel=attrgetter("attn_output"),
    dense=from_dense,
    empty=0.0,
    reductions=("attn_output",),
)

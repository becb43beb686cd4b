"""Largest weights of a query, in order.

The ``k`` largest; ``topk_key`` has their keys. NaN where a query sees fewer.
"""

from operator import attrgetter

import torch
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.statistic import Statistic


def from_dense(dense: DenseAttention) -> Tensor:
    """Sort each row and leave out what it cannot see."""
    count, keys = dense.request.k, dense.weights.shape[-1]
    visible = torch.where(dense.attendable, dense.weights, -1.0)
    best = visible.sort(dim=-1, descending=True).values[..., :count]
    best = torch.where(best < 0, torch.nan, best)
    return torch.nn.functional.pad(best, (0, max(count - keys, 0)), value=torch.nan)


STATISTIC = Statistic(
    name="topk",
    dims=("query", "rank"),
    merge="top",
    units="share",
    high=1.0,
    formula="P_ij at the key j of each rank",
    source="Memory-efficient Transformers via Top-k Attention (Gupta et al. 2021)",
    triton=("topk",),
    doc=__doc__,
    panel=attrgetter("topk_weights"),
    dense=from_dense,
    reductions=("topk_index", "topk_weights"),
    labels={"rank": lambda request, length: range(1, request.k + 1)},
)

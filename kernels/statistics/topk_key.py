"""Keys of the largest weights of a query, in order.

Positions of the ``k`` keys whose weights are ``topk``; equal weights come in any order. NaN where
a query sees fewer.
"""

import torch
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.panels.panel import Panel
from headscope.kernels.statistic import Statistic


def from_panel(panel: Panel) -> Tensor:
    """Count the keys of the largest logits from the start of the text."""
    keys: Tensor = panel.topk_index + panel.keys.start
    return keys.float().masked_fill(panel.topk_index < 0, float("nan"))


def from_dense(dense: DenseAttention) -> Tensor:
    """Order the keys of each row by weight and leave out what it cannot see."""
    count, keys = dense.request.k, dense.weights.shape[-1]
    order = torch.where(dense.attendable, dense.weights, -1.0).argsort(dim=-1, descending=True)
    order = order[..., :count]
    visible = dense.attendable.gather(3, order)
    best = torch.where(visible, order.double(), torch.nan)
    return torch.nn.functional.pad(best, (0, max(count - keys, 0)), value=torch.nan)


STATISTIC = Statistic(
    name="topk_key",
    dims=("query", "rank"),
    merge="top",
    units="position",
    formula="key j of each rank by P_ij",
    source="Memory-efficient Transformers via Top-k Attention (Gupta et al. 2021)",
    triton=("topk",),
    doc=__doc__,
    panel=from_panel,
    dense=from_dense,
    reductions=("topk_index",),
    labels={"rank": lambda request, length: range(1, request.k + 1)},
)

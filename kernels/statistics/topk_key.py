"""Keys of the largest weights of a query, in order.

Positions of the ``k`` keys whose weights are ``topk``; equal weights stand in any order. NaN where
a query sees fewer.
"""

import torch
from torch import Tensor

from headscope.kernels.dense_attention import Whole
from headscope.kernels.panels.panel import Panel
from headscope.kernels.statistic import Statistic


def of_panel(panel: Panel) -> Tensor:
    """Count the keys of the largest logits from the start of the text."""
    keys: Tensor = panel.leaders + panel.keys.start
    return keys.float().masked_fill(panel.leaders < 0, float("nan"))


def of_whole(whole: Whole) -> Tensor:
    """Order the keys of each row by weight and leave out what it cannot see."""
    count, keys = whole.request.k, whole.weights.shape[-1]
    order = torch.where(whole.seen, whole.weights, -1.0).argsort(dim=-1, descending=True)
    order = order[..., :count]
    visible = whole.seen.gather(3, order)
    best = torch.where(visible, order.double(), torch.nan)
    return torch.nn.functional.pad(best, (0, max(count - keys, 0)), value=torch.nan)


STATISTIC = Statistic(
    name="topk_key",
    dims=("query", "rank"),
    merge="top",
    units="position",
    low=0.0,
    high=None,
    scale="sequential",
    formula="key j of each rank by P_ij",
    source="Memory-efficient Transformers via Top-k Attention (Gupta et al. 2021)",
    execution="E4",
    doc=__doc__,
    panel=of_panel,
    dense=of_whole,
    reductions=("leaders",),
    labels={"rank": lambda request, length: range(1, request.k + 1)},
)

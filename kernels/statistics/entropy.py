"""Entropy of the attention weights of a query.

0 where one key gets everything, log(n) where n visible keys share evenly.
"""

import torch
from torch import Tensor

from headscope.kernels.panel import Panel
from headscope.kernels.statistic import Statistic
from headscope.kernels.whole import Whole


def of_panel(panel: Panel) -> Tensor:
    """Add two terms that are never negative, -log(top) and Σ P (peak - s): nothing cancels."""
    gap = torch.sub(panel.peak[..., None], panel.logits, out=panel.scratch)
    return gap.mul_(panel.weights).sum(dim=-1) - panel.top.log()


def of_whole(whole: Whole) -> Tensor:
    """Sum -P log P."""
    return -torch.xlogy(whole.weights, whole.weights).sum(dim=-1)


STATISTIC = Statistic(
    name="entropy",
    dims=("query",),
    merge="entropy",
    units="nats",
    low=0.0,
    high=None,
    scale="sequential",
    formula="H_i = -Σ_j P_ij log P_ij",
    source="Attention Entropy is a Key Factor (Zhang et al. 2024)",
    execution="E3",
    doc=__doc__,
    panel=of_panel,
    dense=of_whole,
)

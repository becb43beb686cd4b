"""Entropy of the attention weights of a query.

0 where one key gets everything, log(n) where n visible keys share evenly. A learned sink counts as
one more outcome.
"""

import torch
from torch import Tensor

from headscope.kernels.panel import Panel
from headscope.kernels.statistic import Statistic
from headscope.kernels.whole import Whole


def of_panel(panel: Panel) -> Tensor:
    """Add two terms that are never negative, surplus and Σ P (peak - s): nothing cancels."""
    gap = torch.sub(panel.peak[..., None], panel.logits, out=panel.scratch)
    keys = gap.mul_(panel.weights).sum(dim=-1) + panel.surplus
    return keys if panel.sinks is None else keys + panel.sunk * (panel.peak - panel.sinks)


def of_whole(whole: Whole) -> Tensor:
    """Sum -P log P over all outcomes."""
    shares = whole.outcomes.softmax(dim=-1)
    return -torch.xlogy(shares, shares).sum(dim=-1)


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
    distribution=True,
)

"""Entropy of the attention weights of a query.

0 where one key gets everything, log(n) where n visible keys share evenly. A learned sink counts as
one more outcome.
"""

import torch
from torch import Tensor

from headscope.kernels.dense_attention import Whole
from headscope.kernels.panels.panel import Panel
from headscope.kernels.statistic import Statistic


def of_panel(panel: Panel) -> Tensor:
    """Take it from the panel, which may know it from the pass that made the weights."""
    return panel.entropy


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
    reductions=("entropy",),
    distribution=True,
)

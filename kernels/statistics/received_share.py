"""Mean share of a row's weight that a key receives from queries that can see it.

Where rows sum to one it is the weight that is received. Rows of sigmoid attention have any sum, and
large weights alone make no sink, so each row is divided by its sum. A row with a sum below 1e-6
attends to nothing and counts as 0.
"""

import torch
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.panels.panel import Panel
from headscope.kernels.statistic import Statistic
from headscope.kernels.statistics.received import finish

LEAST = 1e-6


def from_panel(panel: Panel) -> Tensor:
    """Weight every row by one over its sum."""
    sums = panel.weights.sum(dim=-1, keepdim=True)
    rates = torch.where(sums > LEAST, 1 / sums, 0.0)
    return (rates.transpose(-1, -2) @ panel.weights).squeeze(-2)


def from_dense(dense: DenseAttention) -> Tensor:
    """Divide the rows, then average each column over its visible entries."""
    sums = dense.weights.sum(dim=-1, keepdim=True)
    shares = torch.where(sums > LEAST, dense.weights / sums, 0.0)
    return shares.sum(dim=-2) / dense.visible.sum(dim=-2)


STATISTIC = Statistic(
    name="received_share",
    dims=("key",),
    merge="sum",
    units="share",
    high=1.0,
    formula="mean of P_ik / Σ_j P_ij over the queries i that can see key k",
    source="When Attention Sink Emerges in Language Models (Gu et al. 2024)",
    doc=__doc__,
    panel=from_panel,
    dense=from_dense,
    finish=finish,
)

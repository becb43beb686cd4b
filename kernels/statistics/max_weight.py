"""Largest attention weight of a query.

Its mean over queries is the confidence of a head.
"""

from torch import Tensor

from headscope.kernels.dense_attention import Whole
from headscope.kernels.panels.panel import Panel
from headscope.kernels.statistic import Statistic


def of_panel(panel: Panel) -> Tensor:
    """Take the largest weight of each row."""
    return panel.top


def of_whole(whole: Whole) -> Tensor:
    """Sort each row and take its last weight."""
    return whole.weights.sort(dim=-1).values[..., -1]


STATISTIC = Statistic(
    name="max_weight",
    dims=("query",),
    merge="maximum",
    units="share",
    low=0.0,
    high=1.0,
    scale="sequential",
    formula="max_j P_ij",
    source="Analyzing Multi-Head Self-Attention (Voita et al. 2019)",
    execution="E0",
    doc=__doc__,
    panel=of_panel,
    dense=of_whole,
    reductions=("top",),
)

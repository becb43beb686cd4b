"""Output of the head before the output projection.

The values averaged by the attention weights, in float32.
"""

import torch
from torch import Tensor

from headscope.kernels.dense_attention import Whole
from headscope.kernels.panels.panel import Panel
from headscope.kernels.statistic import Statistic


def of_panel(panel: Panel) -> Tensor:
    """Multiply weights and values, query heads of one KV head together."""
    return panel.mixed


def of_whole(whole: Whole) -> Tensor:
    """Contract weights and values."""
    return torch.einsum("bhqk,bhkd->bhqd", whole.weights, whole.values)


STATISTIC = Statistic(
    name="z",
    dims=("query", "size"),
    merge="average",
    units="activation",
    low=None,
    high=None,
    scale="diverging",
    formula="z_i = Σ_j P_ij v_j",
    source="Attention Is All You Need (Vaswani et al. 2017)",
    execution="E0",
    doc=__doc__,
    panel=of_panel,
    dense=of_whole,
    empty=0.0,
    reductions=("mixed",),
)

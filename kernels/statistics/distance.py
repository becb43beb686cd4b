"""Mean distance that a query looks back.

Distance between query and key weighted by attention, in tokens, clipped at ``clip``: windowed
average attention distance (WAAD). Without causal order, the distance to either side.
"""

import torch
from torch import Tensor

from headscope.kernels.dense_attention import Whole
from headscope.kernels.panels.panel import Panel
from headscope.kernels.statistic import Statistic


def of_panel(panel: Panel) -> Tensor:
    """Average the distances of each row."""
    return panel.mean_distance


def of_whole(whole: Whole) -> Tensor:
    """Contract weights and distances."""
    return torch.einsum("bhqk,qk->bhq", whole.weights, whole.distances)


STATISTIC = Statistic(
    name="distance",
    dims=("query",),
    merge="average",
    units="tokens",
    low=0.0,
    high=None,
    scale="sequential",
    formula="μ_i = Σ_j P_ij min(|i - j|, clip)",
    source="Attention Illuminates LLM Reasoning (Li et al. 2025)",
    execution="E2",
    doc=__doc__,
    panel=of_panel,
    dense=of_whole,
    reductions=("mean_distance",),
    distribution=True,
    positional=True,
)

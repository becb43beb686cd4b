"""Squared length of the column of weights that a key receives.

Sum of the squared weights over queries. Large where many queries agree on one key: the number of
queries at a key that every query attends to alone. NaN at a key that no query can see.
"""

import torch
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.panels.panel import Panel
from headscope.kernels.statistic import Statistic, mask_unattended


def from_panel(panel: Panel) -> Tensor:
    """Add the squared weights of each column."""
    return torch.mul(panel.weights, panel.weights, out=panel.scratch).sum(dim=2)


def from_dense(dense: DenseAttention) -> Tensor:
    """Square the norm of each column."""
    norms: Tensor = torch.linalg.vector_norm(dense.weights, dim=-2)
    return norms.square().masked_fill(dense.visible.sum(dim=-2) == 0, torch.nan)


STATISTIC = Statistic(
    name="column_norm",
    dims=("key",),
    merge="sum",
    units="squared weight",
    formula="Σ_i P_ik²",
    source="HyperAttention (Han et al. 2023)",
    doc=__doc__,
    panel=from_panel,
    dense=from_dense,
    finish=mask_unattended,
)

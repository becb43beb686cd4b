"""Norm of the values that a query attends to, averaged by the weights.

Attention to keys of small value adds little: this is an upper bound of the norm of z, reached where
all values attended to point the same way.
"""

import torch
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.panels.panel import Panel
from headscope.kernels.statistic import Statistic


def from_panel(panel: Panel) -> Tensor:
    """Multiply weights and norms, query heads of one KV head together."""
    batch, heads, queries, keys = panel.weights.shape
    norms = panel.values.norm(dim=-1, keepdim=True)
    return torch.bmm(panel.weights.view(len(norms), -1, keys), norms).view(batch, heads, queries)


def from_dense(dense: DenseAttention) -> Tensor:
    """Contract the weights with the roots of the values' squares."""
    squares = torch.einsum("bhkd,bhkd->bhk", dense.values, dense.values)
    return torch.einsum("bhqk,bhk->bhq", dense.weights, squares.sqrt())


STATISTIC = Statistic(
    name="value_mass",
    dims=("query",),
    merge="average",
    units="activation",
    formula="Σ_j P_ij ‖v_j‖",
    source="Attention is Not Only a Weight (Kobayashi et al. 2020)",
    triton=("rows",),
    doc=__doc__,
    panel=from_panel,
    dense=from_dense,
)

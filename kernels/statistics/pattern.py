"""Attention weights of every query and key.

The one statistic of N×N size: refused above 2048 tokens. For one head or window of a longer text,
recompute it from q, k and lse.
"""

from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.panels.panel import Panel
from headscope.kernels.statistic import Statistic


def from_panel(panel: Panel) -> Tensor:
    """Hand over the rows as they are."""
    return panel.weights


def from_dense(dense: DenseAttention) -> Tensor:
    """Hand over the matrix as it is."""
    return dense.weights


STATISTIC = Statistic(
    name="pattern",
    dims=("query", "key"),
    merge="join",
    units="share",
    low=0.0,
    high=1.0,
    scale="sequential",
    formula="P_ij = exp(s_ij) / Σ_k exp(s_ik)",
    source="A Multiscale Visualization of Attention in the Transformer Model (Vig 2019)",
    triton=("columns",),
    doc=__doc__,
    panel=from_panel,
    dense=from_dense,
)

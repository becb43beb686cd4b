"""Attention weights of every query and key.

The one statistic of N×N size: refused above 2048 tokens. For one head or window of a longer text,
recompute it from q, k and lse.
"""

from operator import attrgetter

from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.statistic import Statistic


def from_dense(dense: DenseAttention) -> Tensor:
    """Return the matrix as it is."""
    return dense.weights


STATISTIC = Statistic(
    name="pattern",
    dims=("query", "key"),
    merge="join",
    units="share",
    high=1.0,
    formula="P_ij = exp(s_ij) / Σ_k exp(s_ik)",
    source="A Multiscale Visualization of Attention in the Transformer Model (Vig 2019)",
    triton=("columns",),
    doc=__doc__,
    panel=attrgetter("weights"),
    dense=from_dense,
)

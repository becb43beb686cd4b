"""Variance of the distance back that a query attends to.

0 for a head that attends at one fixed distance, large for one that splits between near and far.
"""

from operator import attrgetter

import torch
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.statistic import Statistic


def from_dense(dense: DenseAttention) -> Tensor:
    """Expand the square: the weights of the keys need not sum to 1."""
    mean = torch.einsum("bhqk,qk->bhq", dense.weights, dense.distances)
    square = torch.einsum("bhqk,qk->bhq", dense.weights, dense.distances.square())
    return square - mean.square() * (2 - dense.weights.sum(dim=-1))


STATISTIC = Statistic(
    name="distance_variance",
    dims=("query",),
    merge="variance",
    units="tokens²",
    formula="Σ_j P_ij (min(|i - j|, clip) - μ_i)²",
    source=(
        "Analyzing the Structure of Attention in a Transformer Language Model "
        "(Vig and Belinkov 2019)"
    ),
    triton=("rows",),
    doc=__doc__,
    panel=attrgetter("distance_variance"),
    dense=from_dense,
    reductions=("distance_variance",),
    distribution=True,
    positional=True,
)

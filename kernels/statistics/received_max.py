"""Largest weight that a key receives from any query.

Near 1 where some query attends to this key alone, even if its mean is small. NaN at a key that no
query can see.
"""

from operator import attrgetter

import torch
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.statistic import Statistic, mask_unattended


def from_dense(dense: DenseAttention) -> Tensor:
    """Sort each column of visible weights and take its last."""
    weights = torch.where(dense.visible, dense.weights, -1.0)
    largest = weights.sort(dim=2).values[:, :, -1]
    return torch.where(largest < 0, torch.nan, largest)


STATISTIC = Statistic(
    name="received_max",
    dims=("key",),
    merge="largest",
    units="share",
    high=1.0,
    formula="max of P_ik over the queries i that can see key k",
    source="Scissorhands: the Persistence of Importance Hypothesis (Liu et al. 2023)",
    triton=("columns",),
    doc=__doc__,
    panel=attrgetter("key_max"),
    dense=from_dense,
    reductions=("key_max",),
    finish=mask_unattended,
)

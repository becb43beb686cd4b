"""Share of attention by distance, in bins that double.

Bin 0 is the query itself; the others begin at a distance of 1, 2, 4, 8, … tokens, and each ends
before the next. Every row sums to 1. Without causal order, the distance to either side.
"""

from operator import attrgetter

import torch
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.panels.reductions import distance_bins
from headscope.kernels.request import Request
from headscope.kernels.statistic import Statistic


def edges(request: Request, length: int) -> list[int]:
    """List the smallest distance of each bin."""
    return distance_bins(length)


def from_dense(dense: DenseAttention) -> Tensor:
    """Add the weights by the number of binary digits of their distance."""
    queries, keys = dense.weights.shape[2:]
    distance = (dense.positions[:, None] - torch.arange(keys)).abs()
    digits = torch.frexp(distance.double()).exponent.long()
    bins = torch.nn.functional.one_hot(digits, 64).double()
    count = len(edges(dense.request, max(queries, keys)))
    return torch.einsum("bhqk,qkn->bhqn", dense.weights, bins)[..., :count]


STATISTIC = Statistic(
    name="distance_hist",
    dims=("query", "bin"),
    merge="average",
    units="share",
    high=1.0,
    formula="Σ_{bin <= |i - j| < 2 bin} P_ij",
    source=(
        "Analyzing the Structure of Attention in a Transformer Language Model "
        "(Vig and Belinkov 2019)"
    ),
    triton=("rows",),
    doc=__doc__,
    panel=attrgetter("distance_hist"),
    dense=from_dense,
    positional=True,
    reductions=("distance_hist",),
    labels={"bin": edges},
)

"""Largest weight that a key receives from any query.

Near 1 where some query looks at this key alone, even if its mean is small. NaN at a key that no
query can see.
"""

import torch
from torch import Tensor

from headscope.kernels.dense_attention import Whole
from headscope.kernels.panels.panel import Panel
from headscope.kernels.request import Request
from headscope.kernels.statistic import Statistic
from headscope.kernels.visibility import Visibility


def of_panel(panel: Panel) -> Tensor:
    """Take the largest weight of each column."""
    return panel.peaks


def finish(largest: Tensor, visibility: Visibility, request: Request) -> Tensor:
    """Leave out the keys that no query sees."""
    return largest.masked_fill(visibility.seers[:, None] == 0, float("nan"))


def of_whole(whole: Whole) -> Tensor:
    """Sort each column of visible weights and take its last."""
    weights = torch.where(whole.visible, whole.weights, -1.0)
    largest = weights.sort(dim=2).values[:, :, -1]
    return torch.where(largest < 0, torch.nan, largest)


STATISTIC = Statistic(
    name="received_max",
    dims=("key",),
    merge="largest",
    units="share",
    low=0.0,
    high=1.0,
    scale="sequential",
    formula="max of P_ik over the queries i that can see key k",
    source="Scissorhands: the Persistence of Importance Hypothesis (Liu et al. 2023)",
    execution="E4",
    doc=__doc__,
    panel=of_panel,
    dense=of_whole,
    reductions=("peaks",),
    finish=finish,
)

"""Mean weight that a key receives from later queries at a stated distance.

Queries at ``horizon`` tokens after the key that can see it. Future attention influence (FAI) of a
token: large at anchors that later text keeps attending to. NaN at a key with no such query.
"""

import torch
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.panels.panel import Panel
from headscope.kernels.request import Request
from headscope.kernels.statistic import Statistic
from headscope.kernels.visibility import Visibility


def from_panel(panel: Panel) -> Tensor:
    """Add the weights of the band behind the queries."""
    nearest, farthest = panel.request.horizon
    positions = panel.visibility.positions[panel.queries]
    total = torch.zeros(
        *panel.weights.shape[:2], panel.weights.shape[-1], device=panel.weights.device
    )
    first = max(int(positions[0]) - farthest, panel.keys.start) - panel.keys.start
    last = min(int(positions[-1]) - nearest + 1, panel.keys.stop) - panel.keys.start
    if first < last:
        key = torch.arange(first, last, device=positions.device) + panel.keys.start
        back = positions[:, None] - key
        inside = (back >= nearest) & (back <= farthest)
        total[..., first:last] = (panel.weights[..., first:last] * inside).sum(dim=2)
    return total


def finish(total: Tensor, visibility: Visibility, request: Request) -> Tensor:
    """Divide by the number of such queries that see the key; 0 / 0 is NaN."""
    return total / visibility.query_counts_between(*request.horizon)[:, None]


def from_dense(dense: DenseAttention) -> Tensor:
    """Average the entries of each column that are visible and inside the horizon."""
    nearest, farthest = dense.request.horizon
    after = dense.positions[:, None] - torch.arange(dense.weights.shape[-1])
    chosen = dense.visible & (after >= nearest) & (after <= farthest)
    return (dense.weights * chosen).sum(dim=-2) / chosen.sum(dim=-2)


STATISTIC = Statistic(
    name="received_later",
    dims=("key",),
    merge="sum",
    units="share",
    high=1.0,
    formula="mean of P_ik over the queries i that see k, nearest <= i - k <= farthest",
    source="Attention Illuminates LLM Reasoning (Li et al. 2025)",
    triton=("columns",),
    doc=__doc__,
    panel=from_panel,
    dense=from_dense,
    finish=finish,
    positional=True,
)

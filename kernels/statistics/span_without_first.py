"""Shortest distance back that holds most of the attention, first keys left out.

The effective span without the first ``first`` real keys: the smallest number w of tokens such that
the other keys at a distance below w hold ``share`` of the mass of all other keys. NaN where all
others together have less than 1e-20.
"""

import torch
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.panels.panel import Panel
from headscope.kernels.statistic import Statistic
from headscope.kernels.statistics.effective_span import nearest, shortest

# Far above what float32 rounds to 0.
LEAST = 1e-20


def from_panel(panel: Panel) -> Tensor:
    """Read the span off prefix sums in which the first keys have no weight."""
    first = panel.visibility.first_keys(panel.request.first)
    first = first if first.shape[1] == 1 else first[:, panel.queries]
    position = torch.arange(panel.keys.start, panel.keys.stop, device=first.device)
    others = ~(first[..., None] == position).any(dim=2)[:, None]
    before = panel.sum_before(torch.mul(panel.weights, others, out=panel.scratch))
    span = shortest(panel, before).clamp_min(1).float()
    return span.masked_fill(before[..., -1] < LEAST, float("nan"))


def from_dense(dense: DenseAttention) -> Tensor:
    """Order the other keys of each row by distance and add weights until they are enough."""
    weights = torch.where(dense.ranks < dense.request.first, 0.0, dense.weights)
    return torch.where(weights.sum(dim=-1) < LEAST, torch.nan, nearest(dense, weights))


STATISTIC = Statistic(
    name="span_without_first",
    dims=("query",),
    merge="row",
    units="tokens",
    low=1.0,
    formula="min w with Σ_{|i - j| < w, j >= first} P_ij >= share · Σ_{j >= first} P_ij",
    source="Adaptive Attention Span in Transformers (Sukhbaatar et al. 2019)",
    doc=__doc__,
    panel=from_panel,
    dense=from_dense,
    positional=True,
)

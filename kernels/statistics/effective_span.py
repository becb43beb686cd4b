"""Shortest distance back that holds most of the attention.

The smallest number w of tokens such that the keys at a distance below w, the query itself included,
hold ``share`` of the mass. Without causal order, the distance to either side.
"""

import torch
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.panels.panel import Panel
from headscope.kernels.statistic import Statistic


def from_panel(panel: Panel) -> Tensor:
    """Read the span off the prefix sums of each row."""
    # A learned sink may leave the keys with a mass that rounds to 0.
    return shortest(panel, panel.before).clamp_min(1).float()


def shortest(panel: Panel, before: Tensor) -> Tensor:
    """Halve the interval that the shortest distance lies in, given the sums before each key."""
    threshold = panel.request.share * before[..., -1:]
    longest = max(panel.visibility.queries, panel.visibility.keys)
    misses = torch.zeros(threshold.shape, dtype=torch.long, device=threshold.device)
    holds = misses + longest
    for _ in range((longest - 1).bit_length()):
        middle = (misses + holds) // 2
        enough = panel.within(middle, before) >= threshold
        holds = torch.where(enough, middle, holds)
        misses = torch.where(enough, misses, middle)
    return holds[..., 0]


def from_dense(dense: DenseAttention) -> Tensor:
    """Order the keys of each row by distance and add weights until they are enough."""
    return nearest(dense, dense.weights)


def nearest(dense: DenseAttention, weights: Tensor) -> Tensor:
    """Add weights by distance until they are enough."""
    key = torch.arange(weights.shape[-1])
    distance, order = (dense.positions[:, None] - key).abs().sort(dim=-1)
    mass = weights.gather(3, order.expand_as(weights)).cumsum(dim=-1)
    enough = mass >= dense.request.share * mass[..., -1:]
    first = enough.long().argmax(dim=-1, keepdim=True)
    return distance.expand_as(mass).gather(3, first)[..., 0].double() + 1


STATISTIC = Statistic(
    name="effective_span",
    dims=("query",),
    merge="row",
    units="tokens",
    low=1.0,
    formula="min w with Σ_{|i - j| < w} P_ij >= share",
    source="Adaptive Attention Span in Transformers (Sukhbaatar et al. 2019)",
    triton=("rows",),
    doc=__doc__,
    panel=from_panel,
    dense=from_dense,
    positional=True,
)

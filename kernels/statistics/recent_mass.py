"""Share of attention on the last keys.

The ``recent`` positions up to the query, itself included; padding among them counts as a position.
Without causal order, the keys ahead are not part of it.
"""

import torch
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.panels.panel import Panel
from headscope.kernels.statistic import Statistic


def from_panel(panel: Panel) -> Tensor:
    """Add the weights in the band before the queries, outside of which no row reaches."""
    recent = panel.request.recent
    positions = panel.visibility.positions[panel.queries]
    first = max(int(positions[0]) - recent + 1, panel.keys.start)
    last = max(min(int(positions[-1]) + 1, panel.keys.stop), first)
    key = torch.arange(first, last, device=positions.device)
    back = positions[:, None] - key
    band = panel.weights[..., first - panel.keys.start : last - panel.keys.start]
    return (band * ((back >= 0) & (back < recent))).sum(dim=-1)


def from_dense(dense: DenseAttention) -> Tensor:
    """Subtract the weights of the older keys, and of those ahead, from the row's sum."""
    ones = torch.ones(dense.weights.shape[2:], dtype=torch.float64)
    shift = int(dense.positions[0])
    ahead = ones.triu(shift + 1)
    older = ones.tril(shift - dense.request.recent)
    return torch.einsum("bhqk,qk->bhq", dense.weights, ones - ahead - older)


STATISTIC = Statistic(
    name="recent_mass",
    dims=("query",),
    merge="average",
    units="share",
    high=1.0,
    formula="Σ_{0 <= i - j < recent} P_ij",
    source="Efficient Streaming Language Models with Attention Sinks (Xiao et al. 2023)",
    triton=("rows",),
    doc=__doc__,
    panel=from_panel,
    dense=from_dense,
    positional=True,
)

"""Mean weight that a key receives from the last queries of the text.

What the end of a text, usually the question, attends to: the ``last`` last real queries that see
the key. NaN at a key that none of them can see.
"""

from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.panels.panel import Panel
from headscope.kernels.request import Request
from headscope.kernels.statistic import Statistic
from headscope.kernels.visibility import Visibility


def ending(visibility: Visibility, last: int) -> Bool[Tensor, "batch query"]:
    """Which queries are among the last of their sequence that see a key."""
    valid_queries = visibility.valid_queries
    remaining = valid_queries.flip(-1).cumsum(dim=-1).flip(-1)
    if visibility.lengths is not None:
        after = torch.nn.functional.pad(remaining, (0, 1))
        remaining = remaining - after[:, visibility.end]
    return valid_queries & (remaining <= last)


def from_panel(panel: Panel) -> Tensor:
    """Add the weights of these queries, if the panel has any."""
    chosen = ending(panel.visibility, panel.request.last)[:, panel.queries]
    if not bool(chosen.any()):
        return panel.weights.new_zeros(*panel.weights.shape[:2], panel.weights.shape[-1])
    rows = chosen.float()[:, None, None].expand(*panel.weights.shape[:2], 1, -1)
    return (rows @ panel.weights)[:, :, 0]


def finish(total: Tensor, visibility: Visibility, request: Request) -> Tensor:
    """Divide by the number of these queries that see the key; 0 / 0 is NaN."""
    chosen = replace(visibility, query_mask=ending(visibility, request.last))
    return total / chosen.query_counts[:, None]


def from_dense(dense: DenseAttention) -> Tensor:
    """Loop backwards from the end of each sequence."""
    valid_queries = dense.visible[:, 0].any(dim=-1)
    chosen = torch.zeros_like(dense.visible)
    for row in range(len(valid_queries)):
        counts: dict[int, int] = {}
        for query in reversed(range(valid_queries.shape[1])):
            if valid_queries[row, query]:
                first_key = int(dense.visible[row, 0, query].nonzero()[0])
                number = int(dense.sequence[first_key])
                counts[number] = counts.get(number, 0) + 1
                if counts[number] <= dense.request.last:
                    chosen[row, 0, query] = dense.visible[row, 0, query]
    return (dense.weights * chosen).sum(dim=-2) / chosen.sum(dim=-2)


STATISTIC = Statistic(
    name="received_last",
    dims=("key",),
    merge="end",
    units="share",
    high=1.0,
    formula="mean of P_ik over the last queries i that see key k",
    source="SnapKV (Li et al. 2024)",
    triton=("columns",),
    doc=__doc__,
    panel=from_panel,
    dense=from_dense,
    finish=finish,
)

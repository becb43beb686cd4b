"""Attention map pooled into tiles.

Mass that the queries of a tile send to a tile of keys, averaged over the tile's queries: each row
sums to 1. Queries that see no key are left out; a tile without any other is NaN.
"""

import torch
from torch import Tensor

from headscope.kernels.dense_attention import Whole
from headscope.kernels.panels.panel import Panel
from headscope.kernels.request import Request
from headscope.kernels.statistic import Statistic
from headscope.kernels.visibility import Visibility


def of_panel(panel: Panel) -> Tensor:
    """Add up the weights of each tile."""
    return panel.tile_sums


def finish(total: Tensor, visibility: Visibility, request: Request) -> Tensor:
    """Divide by the number of queries in the tile that see a key; 0 / 0 is NaN."""
    alive = visibility.alive
    padded = torch.nn.functional.pad(alive, (0, -alive.shape[-1] % request.tile))
    queries = torch.unflatten(padded, -1, (-1, request.tile)).sum(dim=-1)
    return total / queries[:, None, :, None]


def of_whole(whole: Whole) -> Tensor:
    """Multiply the matrix by tile memberships from both sides."""
    queries, keys = whole.weights.shape[-2:]
    rows, columns = whole.members(queries), whole.members(keys)
    total = torch.einsum("rq,bhqk,ck->bhrc", rows, whole.weights, columns)
    alive = whole.visible.any(dim=-1).double()
    return total / torch.einsum("rq,bhq->bhr", rows, alive)[..., None]


STATISTIC = Statistic(
    name="pooled_mean",
    dims=("query_tile", "key_tile"),
    merge="sum",
    units="share",
    low=0.0,
    high=1.0,
    scale="sequential",
    formula="mean over the tile's queries i of Σ_{j in key tile} P_ij",
    source="SeerAttention (Gao et al. 2024)",
    execution="E4",
    doc=__doc__,
    panel=of_panel,
    dense=of_whole,
    reductions=("tile_sums",),
    finish=finish,
)

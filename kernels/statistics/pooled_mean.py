"""Attention map pooled into tiles.

Mass that the queries of a tile send to a tile of keys, averaged over the tile's queries: each row
sums to 1. Queries that see no key are left out; a tile without any other is NaN.
"""

import torch
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.panels.panel import Panel
from headscope.kernels.request import Request
from headscope.kernels.statistic import Statistic
from headscope.kernels.visibility import Visibility


def from_panel(panel: Panel) -> Tensor:
    """Add up the weights of each tile."""
    return panel.tile_sum


def finish(total: Tensor, visibility: Visibility, request: Request) -> Tensor:
    """Divide by the number of queries in the tile that see a key; 0 / 0 is NaN."""
    valid_queries = visibility.valid_queries
    padded = torch.nn.functional.pad(valid_queries, (0, -valid_queries.shape[-1] % request.tile))
    queries = torch.unflatten(padded, -1, (-1, request.tile)).sum(dim=-1)
    return total / queries[:, None, :, None]


def from_dense(dense: DenseAttention) -> Tensor:
    """Multiply the matrix by tile memberships from both sides."""
    queries, keys = dense.weights.shape[-2:]
    rows, columns = dense.members(queries), dense.members(keys)
    total = torch.einsum("rq,bhqk,ck->bhrc", rows, dense.weights, columns)
    valid_queries = dense.visible.any(dim=-1).double()
    return total / torch.einsum("rq,bhq->bhr", rows, valid_queries)[..., None]


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
    triton=("columns",),
    doc=__doc__,
    panel=from_panel,
    dense=from_dense,
    reductions=("tile_sum",),
    finish=finish,
)

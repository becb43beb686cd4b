"""Attention map pooled into tiles.

Mass that the queries of a tile send to a tile of keys, averaged over the tile's queries: each row
sums to 1. Queries that see no key are left out; a tile without any other is NaN.
"""

from operator import attrgetter

import torch
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.request import Request
from headscope.kernels.statistic import Statistic
from headscope.kernels.visibility import Visibility


def finish(total: Tensor, visibility: Visibility, request: Request) -> Tensor:
    """Divide by the number of queries in the tile that see a key; 0 / 0 is NaN."""
    return total / visibility.valid_queries_of_tiles(request.tile)[:, None, :, None]


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
    high=1.0,
    formula="mean over the tile's queries i of Σ_{j in key tile} P_ij",
    source="SeerAttention (Gao et al. 2024)",
    triton=("columns",),
    doc=__doc__,
    panel=attrgetter("tile_sum"),
    dense=from_dense,
    reductions=("tile_sum",),
    finish=finish,
)

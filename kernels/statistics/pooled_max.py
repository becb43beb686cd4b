"""Attention map pooled into tiles by their largest weight.

Shows single strong links that the mean over a tile hides. 0 where no query of the tile sees the
key tile; a tile of queries that all see no key is NaN.
"""

from operator import attrgetter

import torch
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.request import Request
from headscope.kernels.statistic import Statistic
from headscope.kernels.visibility import Visibility


def finish(largest: Tensor, visibility: Visibility, request: Request) -> Tensor:
    """Leave out the tiles of queries that see no key."""
    empty = visibility.valid_queries_of_tiles(request.tile) == 0
    return largest.masked_fill(empty[:, None, :, None], float("nan"))


def from_dense(dense: DenseAttention) -> Tensor:
    """Loop over the tiles of the matrix."""
    tile = dense.request.tile
    valid_queries = dense.visible.any(dim=-1)
    rows = []
    for first in range(0, dense.weights.shape[2], tile):
        queries = dense.weights[:, :, first : first + tile]
        parts = [queries[..., at : at + tile] for at in range(0, queries.shape[3], tile)]
        row = torch.stack([part.amax(dim=(2, 3)) for part in parts], dim=-1)
        has_query = valid_queries[:, :, first : first + tile].any(dim=-1)
        rows.append(torch.where(has_query[..., None], row, torch.nan))
    return torch.stack(rows, dim=2)


STATISTIC = Statistic(
    name="pooled_max",
    dims=("query_tile", "key_tile"),
    merge="largest",
    units="share",
    high=1.0,
    formula="max of P_ij over the queries i and keys j of a tile pair",
    source="SeerAttention (Gao et al. 2024)",
    triton=("columns",),
    doc=__doc__,
    panel=attrgetter("tile_max"),
    dense=from_dense,
    reductions=("tile_max",),
    finish=finish,
)

"""Share of attention on the key at a fixed offset before the query.

Offset 1 is the previous token, 0 the token itself, -1 the next token. NaN where there is no such
key: before the start, after the end, or padding. 0 where the key exists but is hidden.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.panels.panel import Panel
from headscope.kernels.request import NO_KEY
from headscope.kernels.statistic import Statistic
from headscope.kernels.visibility import Visibility


def keys_at(
    visibility: Visibility, offsets: tuple[int, ...], queries: slice = slice(None)
) -> Int[Tensor, "#batch query offset"]:
    """Find the key at each offset before some queries, -1 where there is none."""
    positions = visibility.positions[queries]
    keys = (positions[:, None] - torch.tensor(offsets, device=positions.device))[None]
    begin, end = (edge[queries, None] for edge in (visibility.begin, visibility.end))
    exists = (keys >= begin) & (keys < end)
    if visibility.key_mask is not None:
        exists = exists & visibility.key_mask[:, keys[0].clamp(0, visibility.keys - 1)]
    return torch.where(exists, keys, NO_KEY)


def from_panel(panel: Panel) -> Tensor:
    """Gather one weight for each query and offset."""
    keys = keys_at(panel.visibility, panel.request.offsets, panel.queries)
    return panel.at(keys).masked_fill((keys == NO_KEY)[:, None], float("nan"))


def from_dense(dense: DenseAttention) -> Tensor:
    """Read one diagonal of the matrix for each offset."""
    batch, heads, queries, keys = dense.weights.shape
    result = torch.full(
        (batch, heads, queries, len(dense.request.offsets)), torch.nan, dtype=torch.float64
    )
    for column, offset in enumerate(dense.request.offsets):
        for query, position in enumerate(dense.positions.tolist()):
            key = position - offset
            if (
                0 <= key < keys
                and dense.sequence[key] == dense.sequence[min(max(position, 0), keys - 1)]
            ):
                result[:, :, query, column] = torch.where(
                    dense.real_keys[:, key, None], dense.weights[:, :, query, key], torch.nan
                )
    return result


STATISTIC = Statistic(
    name="offset_mass",
    dims=("query", "offset"),
    merge="average",
    units="share",
    high=1.0,
    formula="P_{i, i - offset}",
    source="What Does BERT Look At? (Clark et al. 2019)",
    triton=("gathers",),
    doc=__doc__,
    panel=from_panel,
    dense=from_dense,
    positional=True,
    labels={"offset": lambda request, length: request.offsets},
)

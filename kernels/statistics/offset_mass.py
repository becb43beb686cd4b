"""Share of attention on the key at a fixed offset before the query.

Offset 1 is the previous token, 0 the token itself, -1 the next token. NaN where there is no such
key: before the start, after the end, or padding. 0 where the key exists but is hidden.
"""

import torch
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.panels.panel import Panel
from headscope.kernels.request import NO_KEY
from headscope.kernels.statistic import Statistic


def from_panel(panel: Panel) -> Tensor:
    """Gather one weight for each query and offset."""
    visibility = panel.visibility
    positions = visibility.positions[panel.queries]
    offsets = torch.tensor(panel.request.offsets, device=positions.device)
    keys = (positions[:, None] - offsets)[None]
    begin, end = (edge[panel.queries, None] for edge in (visibility.begin, visibility.end))
    exists = (keys >= begin) & (keys < end)
    if visibility.key_mask is not None:
        exists = exists & visibility.key_mask[:, keys[0].clamp(0, visibility.keys - 1)]
    weights = panel.at(torch.where(exists, keys, NO_KEY))
    return weights.masked_fill(~exists[:, None], float("nan"))


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

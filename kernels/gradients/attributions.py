"""The statistics of attention times its gradient, declared once.

They read a panel, or the whole matrix, whose weights are attributions G_ij = P_ij · ∂loss/∂P_ij and
whose logits are the absolute values that the largest are chosen by.
"""

from functools import partial

import torch
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.errors import InvalidInput
from headscope.kernels.statistic import Statistic, mask_unattended
from headscope.kernels.statistics import pooled_max, pooled_mean, received, topk, topk_key


def load(name: str) -> Statistic:
    """Load the declaration of one gradient statistic."""
    if name not in STATISTICS:
        raise InvalidInput(f"stats: no attribution {name!r}; choose from {', '.join(STATISTICS)}")
    return STATISTICS[name]


def rows_of_whole(whole: DenseAttention) -> Tensor:
    """Contract with ones."""
    ones = torch.ones(whole.weights.shape[-1], dtype=torch.float64)
    return torch.einsum("bhqk,k->bhq", whole.weights, ones)


def columns_of_whole(whole: DenseAttention) -> Tensor:
    """Add up the columns that some query may see."""
    attended = whole.visible.any(dim=-2)
    return torch.where(attended, whole.weights.sum(dim=-2), torch.nan)


def tiles_of_whole(whole: DenseAttention) -> Tensor:
    """Multiply the matrix by tile memberships from both sides."""
    rows, columns = (whole.members(size) for size in whole.weights.shape[-2:])
    total = torch.einsum("rq,bhqk,ck->bhrc", rows, whole.weights, columns)
    queries = torch.einsum("rq,bhq->bhr", rows, whole.visible.any(dim=-1).double())
    return torch.where(queries[..., None] > 0, total, torch.nan)


def order_of_whole(whole: DenseAttention) -> tuple[Tensor, Tensor]:
    """Order the keys of each row by absolute value, with how many of them it sees."""
    size = torch.where(whole.attendable, whole.weights.abs(), -1.0)
    order = size.argsort(dim=-1, descending=True)[..., : whole.request.k]
    return order, size.gather(3, order) >= 0


def top_of_whole(whole: DenseAttention) -> Tensor:
    """Gather the attributions in that order."""
    order, real = order_of_whole(whole)
    return fill(torch.where(real, whole.weights.gather(3, order), torch.nan), whole.request.k)


def top_keys_of_whole(whole: DenseAttention) -> Tensor:
    """Keys in that order."""
    order, real = order_of_whole(whole)
    return fill(torch.where(real, order.double(), torch.nan), whole.request.k)


def fill(ranks: Tensor, count: int) -> Tensor:
    """Add the ranks beyond the number of keys."""
    return torch.nn.functional.pad(ranks, (0, count - ranks.shape[-1]), value=torch.nan)


declare = partial(
    Statistic,
    units="loss",
    low=None,
    scale="diverging",
    source="Self-Attention Attribution (Hao et al. 2021)",
)

STATISTICS = {
    statistic.name: statistic
    for statistic in (
        declare(
            name="attribution",
            dims=("query",),
            merge="average",
            formula="Σ_j P_ij ∂loss/∂P_ij",
            doc="Attention times gradient of a query: z_i · ∂loss/∂z_i.",
            panel=lambda panel: panel.weights.sum(dim=-1),
            dense=rows_of_whole,
        ),
        declare(
            name="attribution_received",
            dims=("key",),
            merge="sum",
            formula="Σ_i P_ij ∂loss/∂P_ij",
            doc="Attention times gradient that a key receives from all queries.",
            panel=received.STATISTIC.panel,
            dense=columns_of_whole,
            finish=mask_unattended,
        ),
        declare(
            name="attribution_pooled",
            dims=("query_tile", "key_tile"),
            merge="sum",
            formula="Σ_{i, j in the tiles} P_ij ∂loss/∂P_ij",
            doc="Attention times gradient, summed over tiles.",
            panel=pooled_mean.STATISTIC.panel,
            dense=tiles_of_whole,
            finish=pooled_max.finish,
        ),
        declare(
            name="attribution_topk",
            dims=("query", "rank"),
            merge="top",
            formula="P_ij ∂loss/∂P_ij at the key j of each rank",
            doc="Largest attention times gradient of a query, by absolute value.",
            panel=topk.STATISTIC.panel,
            dense=top_of_whole,
            labels=topk.STATISTIC.labels,
        ),
        declare(
            name="attribution_topk_key",
            dims=("query", "rank"),
            merge="top",
            formula="key j of each rank by |P_ij ∂loss/∂P_ij|",
            doc="Keys of the largest attention times gradient of a query.",
            panel=topk_key.STATISTIC.panel,
            dense=top_keys_of_whole,
            labels=topk_key.STATISTIC.labels,
            units="position",
            low=0.0,
            scale="sequential",
        ),
    )
}

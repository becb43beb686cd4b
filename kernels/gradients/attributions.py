"""The statistics of attention times its gradient, declared once.

They read a panel, or the whole matrix, whose weights are attributions G_ij = P_ij · ∂loss/∂P_ij and
whose logits are the absolute values that the largest are chosen by.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.errors import InvalidInput
from headscope.kernels.panels.panel import Panel
from headscope.kernels.request import Request
from headscope.kernels.statistic import Merge, Statistic
from headscope.kernels.statistics import pooled_mean, received, topk, topk_key
from headscope.kernels.visibility import Visibility


def load(name: str) -> Statistic:
    """Load the declaration of one gradient statistic."""
    if name not in STATISTICS:
        raise InvalidInput(f"stats: no attribution {name!r}; choose from {', '.join(STATISTICS)}")
    return STATISTICS[name]


def rows_of_panel(panel: Panel) -> Tensor:
    """Add up each row."""
    return panel.weights.sum(dim=-1)


def rows_of_whole(whole: DenseAttention) -> Tensor:
    """Contract with ones."""
    ones = torch.ones(whole.weights.shape[-1], dtype=torch.float64)
    return torch.einsum("bhqk,k->bhq", whole.weights, ones)


def columns_of_whole(whole: DenseAttention) -> Tensor:
    """Add up the columns that some query may see."""
    seen = whole.visible.any(dim=-2)
    return torch.where(seen, whole.weights.sum(dim=-2), torch.nan)


def finish_columns(total: Tensor, visibility: Visibility, request: Request) -> Tensor:
    """Leave out the keys that no query sees."""
    return total.masked_fill(visibility.query_counts[:, None] == 0, float("nan"))


def tiles_of_whole(whole: DenseAttention) -> Tensor:
    """Multiply the matrix by tile memberships from both sides."""
    rows, columns = (whole.members(size) for size in whole.weights.shape[-2:])
    total = torch.einsum("rq,bhqk,ck->bhrc", rows, whole.weights, columns)
    queries = torch.einsum("rq,bhq->bhr", rows, whole.visible.any(dim=-1).double())
    return torch.where(queries[..., None] > 0, total, torch.nan)


def finish_tiles(total: Tensor, visibility: Visibility, request: Request) -> Tensor:
    """Leave out the query tiles without a query that sees a key."""
    valid_queries = visibility.valid_queries
    padded = torch.nn.functional.pad(valid_queries, (0, -valid_queries.shape[-1] % request.tile))
    queries = torch.unflatten(padded, -1, (-1, request.tile)).any(dim=-1)
    return total.masked_fill(~queries[:, None, :, None], float("nan"))


def order_of_whole(whole: DenseAttention) -> tuple[Tensor, Tensor]:
    """Order the keys of each row by absolute value, with how many of them it sees."""
    size = torch.where(whole.seen, whole.weights.abs(), -1.0)
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


def declare(
    name: str,
    dims: tuple[str, ...],
    merge: Merge,
    formula: str,
    doc: str,
    panel: Callable[[Panel], Tensor],
    dense: Callable[[DenseAttention], Tensor],
    **more: Any,
) -> Statistic:
    """Declare one statistic, with what they all have in common."""
    common: dict[str, Any] = {"units": "loss", "low": None, "high": None, "scale": "diverging"}
    return Statistic(
        name=name,
        dims=dims,
        merge=merge,
        formula=formula,
        doc=doc,
        source="Self-Attention Attribution (Hao et al. 2021)",
        panel=panel,
        dense=dense,
        **{**common, **more},
    )


STATISTICS = {
    statistic.name: statistic
    for statistic in (
        declare(
            "attribution",
            ("query",),
            "average",
            "Σ_j P_ij ∂loss/∂P_ij",
            "Attention times gradient of a query: z_i · ∂loss/∂z_i.",
            rows_of_panel,
            rows_of_whole,
        ),
        declare(
            "attribution_received",
            ("key",),
            "sum",
            "Σ_i P_ij ∂loss/∂P_ij",
            "Attention times gradient that a key receives from all queries.",
            received.from_panel,
            columns_of_whole,
            finish=finish_columns,
        ),
        declare(
            "attribution_pooled",
            ("query_tile", "key_tile"),
            "sum",
            "Σ_{i, j in the tiles} P_ij ∂loss/∂P_ij",
            "Attention times gradient, summed over tiles.",
            pooled_mean.from_panel,
            tiles_of_whole,
            finish=finish_tiles,
        ),
        declare(
            "attribution_topk",
            ("query", "rank"),
            "top",
            "P_ij ∂loss/∂P_ij at the key j of each rank",
            "Largest attention times gradient of a query, by absolute value.",
            topk.from_panel,
            top_of_whole,
            labels=topk.STATISTIC.labels,
        ),
        declare(
            "attribution_topk_key",
            ("query", "rank"),
            "top",
            "key j of each rank by |P_ij ∂loss/∂P_ij|",
            "Keys of the largest attention times gradient of a query.",
            topk_key.from_panel,
            top_keys_of_whole,
            labels=topk_key.STATISTIC.labels,
            units="position",
            low=0.0,
            scale="sequential",
        ),
    )
}

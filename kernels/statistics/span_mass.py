"""Share of attention on each span of tokens.

A span is any set of keys, such as the needle, the question or a document; a key belongs to one span
or to none. NaN where a text has no key of the span.
"""

import torch
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.panels.panel import Panel
from headscope.kernels.request import Request
from headscope.kernels.statistic import Statistic
from headscope.kernels.visibility import Visibility


def spans_of(request: Request, length: int) -> range:
    """Number the spans of the request."""
    spans = request.spans
    return range(0 if spans is None or not spans.numel() else int(spans.max()) + 1)


def members(spans: Tensor, count: int) -> Tensor:
    """Return, for each key and span, whether the key belongs to it."""
    return spans[..., None] == torch.arange(count, device=spans.device)


def from_panel(panel: Panel) -> Tensor:
    """Multiply weights and memberships."""
    assert panel.spans is not None
    batch, heads, queries, keys = panel.weights.shape
    belongs = members(panel.spans, len(spans_of(panel.request, keys))).to(panel.weights)
    return torch.bmm(panel.weights.view(batch, -1, keys), belongs).view(batch, heads, queries, -1)


def finish(total: Tensor, visibility: Visibility, request: Request) -> Tensor:
    """Leave out the spans without a real key."""
    assert request.spans is not None
    belongs = members(request.spans.to(total.device), total.shape[3])
    if visibility.key_mask is not None:
        belongs = belongs & visibility.key_mask[..., None]
    return total.masked_fill(~belongs.any(dim=1)[:, None, None], float("nan"))


def from_dense(dense: DenseAttention) -> Tensor:
    """Add the weights to the spans of their keys."""
    assert dense.request.spans is not None
    batch, heads, queries, _ = dense.weights.shape
    spans = torch.where(dense.real_keys, dense.request.spans.cpu().long(), -1) + 1
    count = len(spans_of(dense.request, spans.shape[1]))
    mass = torch.zeros(batch, heads, queries, count + 1, dtype=torch.float64)
    mass.scatter_add_(3, spans[:, None, None].expand_as(dense.weights), dense.weights)
    keys = torch.zeros(batch, count + 1).scatter_add_(1, spans, torch.ones(spans.shape))
    return torch.where(keys[:, None, None] > 0, mass, torch.nan)[..., 1:]


STATISTIC = Statistic(
    name="span_mass",
    dims=("query", "span"),
    merge="average",
    units="share",
    high=1.0,
    formula="Σ_{j in span} P_ij",
    source="Lookback Lens (Chuang et al. 2024)",
    triton=("rows",),
    doc=__doc__,
    panel=from_panel,
    dense=from_dense,
    finish=finish,
    labels={"span": spans_of},
)

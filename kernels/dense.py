"""The oracle: the whole attention matrix in float64, for tests and short texts."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.kernels import inputs, statistics
from headscope.kernels.request import Request
from headscope.kernels.whole import Whole


def attend_dense(
    q: Float[Tensor, "batch head query size"],
    k: Float[Tensor, "batch kv_head key size"],
    v: Float[Tensor, "batch kv_head key value_size"],
    request: Request,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    key_mask: Bool[Tensor, "batch key"] | None = None,
    query_mask: Bool[Tensor, "batch query"] | None = None,
) -> dict[str, Tensor]:
    """Compute the same as ``attend`` in float64 from the whole N×N matrix.

    Parameters
    ----------
    q, k, v, request, scale, causal, window, softcap, key_mask, query_mask
        As in ``attend``; float64 is taken as well.

    Returns
    -------
    As ``attend``, in float64.

    Raises
    ------
    Refused
        When tensors, masks or request do not fit.

    Examples
    --------
    >>> q = k = v = torch.zeros(1, 1, 4, 8)
    >>> attend_dense(q, k, v, Request(stats=("max_weight",)))["max_weight"]
    tensor([[[1.0000, 0.5000, 0.3333, 0.2500]]], dtype=torch.float64)
    """
    inputs.check_tensors(q, k, v, (*inputs.DTYPES, torch.float64))
    inputs.check_options(scale, window, softcap)
    inputs.check_request(request, q.shape[0], q.shape[2], k.shape[2])
    padded = inputs.check_mask("key_mask", key_mask, k.shape[0], k.shape[2]) is not None
    inputs.check_mask("query_mask", query_mask, q.shape[0], q.shape[2])
    if padded:
        inputs.real_queries(q, k, causal, key_mask, query_mask)

    batch, queries, keys = q.shape[0], q.shape[2], k.shape[2]
    positions = torch.arange(keys - queries, keys) if causal else torch.arange(queries)
    real_keys = torch.ones(batch, keys, dtype=torch.bool) if key_mask is None else key_mask.cpu()
    visible = torch.zeros(batch, 1, queries, keys, dtype=torch.bool)
    for query, position in enumerate(positions.tolist()):
        if query_mask is not None:
            real = query_mask[:, query].cpu()
        elif causal:
            real = real_keys[:, position] if position >= 0 else torch.zeros(batch).bool()
        else:
            real = torch.ones(batch).bool()
        first = 0 if window is None else max(position - window + 1, 0)
        last = keys if window is None else min(position + window, keys)
        last = min(last, position + 1) if causal else last
        if last > first:
            visible[:, 0, query, first:last] = real_keys[:, first:last] & real[:, None]

    repeats = q.shape[1] // k.shape[1]
    q, k, v = (tensor.detach().cpu().double() for tensor in (q, k, v))
    k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    logits = torch.einsum("bhqd,bhkd->bhqk", q, k)
    logits = logits / q.shape[3] ** 0.5 if scale is None else logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = torch.where(visible, logits, -torch.inf)
    alive = visible.any(dim=-1, keepdim=True)
    peak = torch.where(alive, logits.amax(dim=-1, keepdim=True), 0.0)
    grown = torch.exp(logits - peak)
    weights = torch.where(alive, grown / grown.sum(dim=-1, keepdim=True), 0.0)
    values = torch.where(real_keys[:, None, :, None], v, 0.0)
    whole = Whole(logits, weights, values, visible, real_keys, positions, request)

    results = {}
    for name in dict.fromkeys(("z", *request.stats)):
        statistic = statistics.load(name)
        result = statistic.dense(whole)
        if statistic.by_query:
            rows = alive[..., 0].view(batch, 1, queries, *[1] * (result.ndim - 3))
            result = torch.where(rows, result, statistic.empty)
        results[name] = result
    return results

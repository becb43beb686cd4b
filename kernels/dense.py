"""The oracle: the whole attention matrix in float64, for tests and short texts."""

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.kernels import inputs, statistics
from headscope.kernels.attention_spec import PLAIN, AttentionSpec
from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.request import Request
from headscope.kernels.statistic import check_distribution
from headscope.kernels.weight_edits import WeightEdits


def attend_dense(
    q: Float[Tensor, "batch head query size"],
    k: Float[Tensor, "batch kv_head key size"],
    v: Float[Tensor, "batch kv_head key value_size"],
    request: Request,
    spec: AttentionSpec = PLAIN,
) -> dict[str, Tensor]:
    """Compute the same as ``attend`` in float64, which is taken as well, from the whole matrix."""
    inputs.check_tensors(q, k, v, (*inputs.DTYPES, torch.float64))
    inputs.check_request(request, q.shape[0], q.shape[2], k.shape[2])
    names = dict.fromkeys(("z", *request.stats))
    check_distribution([statistics.load(name) for name in names], spec)
    spec.fit(q, k)

    batch, heads, queries, size = q.shape
    keys = k.shape[2]
    positions = torch.arange(keys - queries, keys) if spec.causal else torch.arange(queries)
    real_keys = torch.ones(batch, keys, dtype=torch.bool)
    if spec.key_mask is not None:
        real_keys = spec.key_mask.cpu()
    sequence = torch.zeros(keys, dtype=torch.long)
    if spec.lengths is not None:
        sequence = torch.repeat_interleave(torch.tensor(spec.lengths))
    visible = visible_keys(spec, positions, real_keys, sequence)
    repeats = heads // k.shape[1]
    q, k, v = (tensor.detach().cpu().double() for tensor in (q, k, v))
    k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    products = torch.einsum("bhqd,bhkd->bhqk", q, k)
    products = products / size**0.5 if spec.scale is None else products * spec.scale
    if spec.softcap is not None:
        products = spec.softcap * torch.tanh(products / spec.softcap)
    distances = (positions[:, None] - torch.arange(keys)).abs()
    logits = torch.where(visible, add_biases(products, spec, distances), -torch.inf)
    sinks = torch.full((heads,), -torch.inf, dtype=torch.float64)
    edits = WeightEdits() if spec.edits is None else spec.edits
    if spec.sinks is not None:
        sinks = spec.sinks.detach().cpu().double()
        if edits.temperature is not None:
            sinks = sinks / edits.temperature.cpu().double()
    values = torch.where(real_keys[:, None, :, None], v, 0.0)
    dense = DenseAttention(
        logits,
        logits,
        values,
        sinks[None, :, None, None],
        visible,
        sequence,
        real_keys,
        positions,
        request,
    )
    if edits.recent is not None and edits.first is not None:
        recent, first = (limit.cpu().view(1, -1, 1, 1) for limit in (edits.recent, edits.first))
        in_window = (distances < recent) | (dense.ranks < first) | (recent == 0)
        dense.logits = torch.where(in_window, dense.logits, -torch.inf)
    if edits.pattern is not None:
        unset = edits.pattern.isnan().cpu()
        fixed = torch.where(visible, edits.pattern.cpu().double().log(), -torch.inf)
        dense.logits = torch.where(unset, dense.logits, fixed)
    valid_queries = dense.attendable.any(dim=-1)
    dense.weights = normalize(dense, valid_queries[..., None], spec.sigmoid)

    results = {}
    for name in names:
        statistic = statistics.load(name)
        result = statistic.dense(dense)
        if name == "z" and edits.gate is not None:
            result = result * edits.gate.detach().cpu().double()[:, :, None, None]
        if statistic.by_query:
            rows = valid_queries.view(*valid_queries.shape, *[1] * (result.ndim - 3))
            result = torch.where(rows, result, statistic.empty)
        results[name] = result
    return results


def visible_keys(
    spec: AttentionSpec, positions: Tensor, real_keys: Tensor, sequence: Tensor
) -> Tensor:
    """List, query by query, the keys inside order, window, sequence and padding."""
    (batch, keys), queries = real_keys.shape, len(positions)
    visible = torch.zeros(batch, 1, queries, keys, dtype=torch.bool)
    for query, position in enumerate(positions.tolist()):
        if spec.query_mask is not None:
            real = spec.query_mask[:, query].cpu()
        elif spec.causal:
            real = real_keys[:, position] if position >= 0 else torch.zeros(batch).bool()
        else:
            real = torch.ones(batch).bool()
        first = 0 if spec.window is None else max(position - spec.window + 1, 0)
        last = keys if spec.window is None else min(position + spec.window, keys)
        last = min(last, position + 1) if spec.causal else last
        if last > first:
            own = sequence[first:last] == sequence[min(position, keys - 1)]
            visible[:, 0, query, first:last] = real_keys[:, first:last] & real[:, None] & own
    return visible


def add_biases(scores: Tensor, spec: AttentionSpec, distances: Tensor) -> Tensor:
    """Add what position, bias and edits add to the scores, and divide by the temperature."""
    edits = WeightEdits() if spec.edits is None else spec.edits
    if spec.slopes is not None:
        scores = scores - torch.einsum("h,qk->hqk", spec.slopes.cpu().double(), distances)
    if spec.bias is not None:
        scores = scores + spec.bias.detach().cpu().double()
    if edits.temperature is not None:
        scores = scores / edits.temperature.cpu().double()[:, None, None]
    if edits.key_bias is not None:
        scores = scores + edits.key_bias.detach().cpu().double()[:, :, None]
    if edits.spans is not None:
        table, query_spans, key_spans = (tensor.detach().cpu() for tensor in edits.spans)
        table = table.double()
        for row in range(table.shape[1]):
            for column in range(table.shape[2]):
                link = (query_spans == row)[:, None, :, None]
                link = link & (key_spans == column)[:, None, None]
                scores = torch.where(link, scores + table[:, row, column, None, None], scores)
    return scores


def normalize(dense: DenseAttention, valid_queries: Tensor, sigmoid: bool) -> Tensor:
    """Convert logits into weights; rows without a key get none."""
    if sigmoid:
        return torch.where(dense.attendable, torch.special.expit(dense.logits), 0.0)
    peak = torch.where(valid_queries, dense.outcomes.amax(dim=-1, keepdim=True), 0.0)
    grown = torch.exp(dense.outcomes - peak)
    return torch.where(valid_queries, grown / grown.sum(dim=-1, keepdim=True), 0.0)[..., :-1]

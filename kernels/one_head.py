"""Weights and pooled maps of one head, with memory linear in the text."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.kernels import statistics
from headscope.kernels.attention_spec import PLAIN, AttentionSpec
from headscope.kernels.panels.engine import accumulate, allocate, finish
from headscope.kernels.panels.panel import Panel
from headscope.kernels.panels.plan import Part
from headscope.kernels.panels.row_panels import Panels
from headscope.kernels.ranges import length
from headscope.kernels.request import Request


@torch.no_grad()
def head_weights(
    q: Float[Tensor, "1 head query size"],
    k: Float[Tensor, "1 kv_head key size"],
    head: int,
    queries: Int[Tensor, " row"],
    keys: Int[Tensor, " column"],
    spec: AttentionSpec = PLAIN,
) -> Float[Tensor, "row column"]:
    """Compute the weights of some queries on some keys of one sequence.

    ``queries`` and ``keys`` are positions, each once and in ascending order.

    Examples
    --------
    >>> q = torch.zeros(1, 1, 4, 8)
    >>> head_weights(q, q, 0, torch.tensor([1, 3]), torch.tensor([0, 2]))
    tensor([[0.5000, 0.0000],
            [0.2500, 0.2500]])
    """
    query_mask = torch.zeros(q.shape[2], dtype=torch.bool)
    query_mask[queries] = True
    weights = torch.zeros(len(queries), len(keys), device=q.device)

    def run(part: Part, filled: Iterator[Panel]) -> None:
        if not part.heads.start <= head < part.heads.stop:
            return
        for panel in filled:
            rows, columns = _inside(queries, panel.queries), _inside(keys, panel.keys)
            chosen = panel.weights[0, head - part.heads.start]
            chosen = chosen[queries[rows].to(q.device) - panel.queries.start]
            weights[rows, columns] = chosen[:, keys[columns].to(q.device) - panel.keys.start]

    Panels(q, k, k[..., :0], spec.fit(q, k), query_mask=query_mask).for_each_part(run)
    return weights


@torch.no_grad()
def head_statistics(
    q: Float[Tensor, "1 head query size"],
    k: Float[Tensor, "1 kv_head key size"],
    head: int,
    request: Request,
    spec: AttentionSpec = PLAIN,
) -> dict[str, Tensor]:
    """Compute statistics that need no values, of one head of one sequence: their own dims only."""
    chosen = [statistics.load(name) for name in request.stats]
    reads = frozenset[str]().union(*(statistic.reads for statistic in chosen))
    panels = Panels(q, k, k[..., :0], spec.fit(q, k), request, reductions=reads)
    results: dict[str, Tensor] = {}

    def run(part: Part, filled: Iterator[Panel]) -> None:
        if not part.heads.start <= head < part.heads.stop:
            return
        heads = length(part.heads)
        totals = {statistic.name: allocate(statistic, panels, heads) for statistic in chosen}
        for panel in filled:
            for statistic in chosen:
                accumulate(statistic, panel, totals[statistic.name])
        index = head - part.heads.start
        results.update({name: total[:, [index]] for name, total in totals.items()})

    panels.for_each_part(run)
    return {name: result[0, 0] for name, result in finish(chosen, results, panels).items()}


def _inside(positions: Tensor, window: slice) -> slice:
    """Find the ascending positions inside a window."""
    edges = torch.tensor([window.start, window.stop])
    start, stop = torch.searchsorted(positions.contiguous(), edges).tolist()
    return slice(start, stop)

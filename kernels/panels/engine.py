"""The panel engine: compute statistics panel by panel and accumulate them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from headscope.kernels.panels.panel import Panel
from headscope.kernels.panels.plan import PanelPlan, Part
from headscope.kernels.panels.row_panels import Panels
from headscope.kernels.statistic import Statistic


@dataclass(frozen=True, eq=False)
class PanelEngine:
    """Statistics of one attention call, in row panels."""

    panels: Panels

    def run(self, chosen: list[Statistic]) -> dict[str, Tensor]:
        """Compute the chosen statistics, by name."""
        results = {statistic.name: allocate(statistic, self.panels) for statistic in chosen}

        def capture(part: Part, filled: Iterator[Panel]) -> None:
            # Parts write to disjoint places, so they may run in any order or side by side.
            outputs = {name: result[part.batch, part.heads] for name, result in results.items()}
            for panel in filled:
                for statistic in chosen:
                    accumulate(statistic, panel, outputs[statistic.name])

        replace(self.panels, output=results.get("z")).for_each_part(capture)
        return finish(chosen, results, self.panels)


def finish(
    chosen: list[Statistic], totals: dict[str, Tensor], plan: PanelPlan
) -> dict[str, Tensor]:
    """Convert the sums over panels into the statistics."""
    finished = {}
    for statistic in chosen:
        total = totals[statistic.name]
        if statistic.finish is not None:
            total = statistic.finish(total, plan.visibility, plan.request)
        finished[statistic.name] = total
    return finished


def allocate(statistic: Statistic, plan: PanelPlan, heads: int | None = None) -> Tensor:
    """Allocate a statistic of some heads: 0 where panels add, NaN where some are left out."""
    (batch, all_heads, queries, _), keys = plan.q.shape, plan.k.shape[2]
    tile = plan.request.tile
    sizes = {
        "query": queries,
        "key": keys,
        "query_tile": -(-queries // tile),
        "key_tile": -(-keys // tile),
        "size": plan.v.shape[3],
    }
    for dim, labels in statistic.labels.items():
        sizes[dim] = len(labels(plan.request, max(queries, keys)))
    shape = (batch, all_heads if heads is None else heads, *(sizes[dim] for dim in statistic.dims))
    result = torch.empty(shape, dtype=plan.precision, device=plan.q.device)
    # Keys outside a panel have no weight, and a panel does not write there.
    if {"key", "key_tile"} & set(statistic.dims):
        return result.zero_()
    # Otherwise every place is written once; to write it before takes as long as a product.
    return result if plan.query_mask is None else result.fill_(float("nan"))


def accumulate(statistic: Statistic, panel: Panel, result: Tensor) -> None:
    """Write, add or keep the largest of a panel's statistic, at the panel's slice of the result."""
    target = result
    for axis, dim in enumerate(statistic.dims, 2):
        if dim in panel.extents:
            target = target.narrow(axis, *panel.extents[dim])
    values = statistic.panel(panel)
    if statistic.merge == "largest":
        torch.maximum(target, values, out=target)
    elif not statistic.by_query:
        target.add_(values)
    else:
        if values.data_ptr() != target.data_ptr():
            target.copy_(values)
        if panel.invalid_rows is not None:
            shape = (*panel.invalid_rows.shape, *[1] * (target.ndim - 3))
            # A row of a whole pattern is longer than its panel.
            rows = result[:, :, panel.queries]
            rows.masked_fill_(panel.invalid_rows.view(shape), statistic.empty)

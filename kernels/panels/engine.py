"""The capture engine on torch: hands the panels of an attention call to the statistics."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from headscope.kernels.panels.panel import Panel
from headscope.kernels.panels.row_panels import Panels, Part
from headscope.kernels.statistic import Statistic


@dataclass(frozen=True, eq=False)
class PanelEngine:
    """Statistics of one attention call, in row panels.

    Parameters
    ----------
    panels
        The panels of the call.
    """

    panels: Panels

    def run(self, chosen: list[Statistic]) -> dict[str, Tensor]:
        """Compute the chosen statistics, by name."""
        results = {statistic.name: self.allocate(statistic) for statistic in chosen}

        def capture(part: Part, filled: Iterator[Panel]) -> None:
            # Parts write to disjoint places, so they may run in any order or side by side.
            places = {name: each[part.batch, part.heads] for name, each in results.items()}
            for panel in filled:
                for statistic in chosen:
                    put(statistic, panel, places[statistic.name])

        replace(self.panels, output=results.get("z")).each(capture)
        for statistic in chosen:
            if statistic.finish is not None:
                results[statistic.name] = statistic.finish(
                    results[statistic.name], self.panels.visibility, self.panels.request
                )
        return results

    def allocate(self, statistic: Statistic) -> Tensor:
        """Make room for a statistic: 0 where panels add, NaN where panels may be left out."""
        panels = self.panels
        queries, keys = panels.q.shape[2], panels.k.shape[2]
        tile = panels.request.tile
        sizes = {
            "query": queries,
            "key": keys,
            "query_tile": -(-queries // tile),
            "key_tile": -(-keys // tile),
            "size": panels.v.shape[3],
        }
        for dim, labels in statistic.labels.items():
            sizes[dim] = len(labels(panels.request, max(queries, keys)))
        shape = (*panels.q.shape[:2], *(sizes[dim] for dim in statistic.dims))
        made = torch.empty(shape, dtype=panels.precision, device=panels.q.device)
        # Keys outside a panel have no weight, and a panel does not write there.
        if {"key", "key_tile"} & set(statistic.dims):
            return made.zero_()
        # Otherwise every place is written once; to write it before takes as long as a product.
        return made if panels.wanted is None else made.fill_(float("nan"))


def put(statistic: Statistic, panel: Panel, place: Tensor) -> None:
    """Write, add or keep the largest of what panels say, in their part of the result."""
    there = place
    for axis, dim in enumerate(statistic.dims, 2):
        if dim in panel.extents:
            there = there.narrow(axis, *panel.extents[dim])
    if statistic.merge == "largest":
        torch.maximum(there, statistic.panel(panel), out=there)
    elif not statistic.by_query:
        there.add_(statistic.panel(panel))
    else:
        made = statistic.panel(panel)
        if made.data_ptr() != there.data_ptr():
            there.copy_(made)
        if panel.dead is not None:
            dead = panel.dead.view(*panel.dead.shape, *[1] * (there.ndim - 3))
            # A row of a whole pattern is longer than its panel.
            place[:, :, panel.queries].masked_fill_(dead, statistic.empty)

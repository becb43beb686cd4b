"""The row-panel engine: cuts an attention call into panels and hands them to the statistics."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from headscope.kernels.panel import Panel
from headscope.kernels.request import Request
from headscope.kernels.statistic import Statistic
from headscope.kernels.visibility import Visibility

ROWS = 128
PANEL_ELEMENTS = 1 << 18
"""Elements of a panel, 1 MB in float32: its buffers stay in a core's cache."""
LARGEST_PANEL = 1 << 22
"""Elements above which a panel of one head takes fewer queries, for very long texts."""


@dataclass(frozen=True)
class Part:
    """Some sequences, some KV heads, and some of the query heads that share each KV head.

    Either all query heads of several KV heads or some query heads of one, so that the query heads
    are consecutive.
    """

    batch: slice
    kv: slice
    group: slice


@dataclass(frozen=True, eq=False)
class PanelEngine:
    """One attention call on torch, in panels.

    Parameters
    ----------
    q, k, v
        Checked tensors of shape (batch, head, token, size).
    request
        Parameters of the statistics.
    visibility
        Which keys each query may see.
    scale
        Factor of the scores.
    softcap
        Cap of the scores, None for none.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    request: Request
    visibility: Visibility
    scale: float
    softcap: float | None

    def run(self, chosen: list[Statistic]) -> dict[str, Tensor]:
        """Compute the chosen statistics, by name."""
        results = {statistic.name: self.allocate(statistic) for statistic in chosen}
        # Parts write to disjoint places, so they may run in any order or side by side.
        for part in self.parts():
            self.capture(part, chosen, results)
        for statistic in chosen:
            if statistic.finish is not None:
                total = results[statistic.name]
                results[statistic.name] = statistic.finish(total, self.visibility, self.request)
        return results

    @property
    def group(self) -> int:
        """Number of query heads that share a KV head."""
        return self.q.shape[1] // self.k.shape[1]

    @property
    def rows(self) -> int:
        """Largest number of queries in a panel."""
        affordable = max(LARGEST_PANEL // self.visibility.keys // 32 * 32, 32)
        return min(affordable, ROWS, self.visibility.queries)

    @cached_property
    def panels(self) -> list[tuple[slice, slice]]:
        """Queries and keys of every panel; its queries are whole tiles or lie in one tile."""
        tile, rows = self.request.tile, self.rows
        step = rows // tile * tile if tile <= rows else tile
        return [
            (queries, self.visibility.span(queries, tile))
            for block in cut(0, self.visibility.queries, step)
            for queries in cut(block.start, block.stop, rows)
        ]

    @cached_property
    def largest(self) -> int:
        """Elements of the largest panel of one head."""
        return max(size(queries) * size(keys) for queries, keys in self.panels)

    def parts(self) -> Iterator[Part]:
        """Cut batch and heads so that a panel of one part stays small."""
        batch, kv_heads = self.k.shape[:2]
        heads = max(PANEL_ELEMENTS // self.largest, 1)
        for sequences in cut(0, batch, max(heads // self.q.shape[1], 1)):
            for kv in cut(0, kv_heads, max(heads // self.group, 1)):
                for group in cut(0, self.group, heads):
                    yield Part(sequences, kv, group)

    def allocate(self, statistic: Statistic) -> Tensor:
        """Make room for a statistic: NaN where each place is written once, 0 where panels add."""
        queries, keys, tile = self.visibility.queries, self.visibility.keys, self.request.tile
        sizes = {
            "query": queries,
            "key": keys,
            "query_tile": -(-queries // tile),
            "key_tile": -(-keys // tile),
            "offset": len(self.request.offsets),
            "target": 0 if self.request.targets is None else self.request.targets.shape[1],
            "size": self.v.shape[3],
        }
        shape = (*self.q.shape[:2], *(sizes[dim] for dim in statistic.dims))
        # Keys outside a panel have no weight, and a panel does not write there.
        start = 0.0 if {"key", "key_tile"} & set(statistic.dims) else float("nan")
        return torch.full(shape, start, device=self.q.device)

    def capture(self, part: Part, chosen: list[Statistic], results: dict[str, Tensor]) -> None:
        """Run the panels of one part and put their results in place."""
        first = part.kv.start * self.group + part.group.start
        heads = slice(first, (part.kv.stop - 1) * self.group + part.group.stop)
        places = {name: result[part.batch, heads] for name, result in results.items()}
        for panel in self.fill(part):
            dead = ~panel.visibility.alive[:, panel.queries]
            some_dead = bool(dead.any())
            if some_dead:
                panel.weights.masked_fill_(dead[:, None, :, None], 0.0)
            for statistic in chosen:
                place = places[statistic.name]
                put(statistic, panel, place)
                if some_dead and statistic.by_query:
                    rows = place[:, :, panel.queries]
                    rows.masked_fill_(
                        dead.view(len(dead), 1, -1, *[1] * (rows.ndim - 3)), statistic.empty
                    )

    def fill(self, part: Part) -> Iterator[Panel]:
        """Compute logits and weights of each panel in turn, in the same memory."""
        visibility = self.visibility.batches(part.batch)
        request = self.request
        if request.targets is not None:
            targets = request.targets[part.batch].to(self.q.device, torch.long)
            request = dataclasses.replace(request, targets=targets)
        q = torch.unflatten(self.q, 1, (-1, self.group))[part.batch, part.kv, part.group]
        k = self.k[part.batch, part.kv].float().flatten(0, 1).mT
        v = self.v[part.batch, part.kv].float()
        if visibility.key_mask is not None:
            # 0 · NaN is NaN: what padding holds must not reach the product.
            v = v.masked_fill(~visibility.key_mask[:, None, :, None], 0.0)
        v = v.flatten(0, 1)
        batch, heads = q.shape[0], q.shape[1] * q.shape[2]
        memory = torch.empty(3, batch * heads * self.largest, device=q.device)
        for queries, keys in self.panels:
            shape = (batch, heads, size(queries), size(keys))
            logits, weights, scratch = memory[:, : torch.Size(shape).numel()].view(3, *shape)
            # Query heads that share a KV head are rows of one product: K is never expanded.
            rows = q[..., queries, :].float().mul(self.scale).reshape(len(v), -1, q.shape[-1])
            product = logits.view(len(v), rows.shape[1], -1)
            torch.bmm(rows, k[..., keys], out=product)
            if self.softcap is not None:
                logits.div_(self.softcap).tanh_().mul_(self.softcap)
            visibility.hide(logits, queries, keys)
            torch.softmax(logits, dim=-1, out=weights)
            yield Panel(logits, weights, scratch, v[:, keys], queries, keys, visibility, request)


def put(statistic: Statistic, panel: Panel, place: Tensor) -> None:
    """Write, or add, what a panel says of a statistic to its part of the result."""
    tile = panel.request.tile
    extents = {
        "query": panel.queries,
        "key": panel.keys,
        "query_tile": slice(panel.queries.start // tile, -(-panel.queries.stop // tile)),
        "key_tile": slice(panel.keys.start // tile, -(-panel.keys.stop // tile)),
    }
    where = tuple(extents.get(dim, slice(None)) for dim in statistic.dims)
    if statistic.by_query:
        place[:, :, *where].copy_(statistic.panel(panel))
    else:
        place[:, :, *where].add_(statistic.panel(panel))


def cut(start: int, stop: int, step: int) -> Iterator[slice]:
    """Cut a range into consecutive pieces of at most ``step``."""
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def size(piece: slice) -> int:
    """Count the places of a slice."""
    return int(piece.stop) - int(piece.start)

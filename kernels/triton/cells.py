"""Tiles of the kernel that respect the tiles of a request.

The tokens of a kernel's tile are cut into cells: a cell has a power of two of slots and holds a
whole request tile, or one of a few equal parts of it, with empty slots at its end where these do
not fill it. Pooling is then the same reduction for every tile size.
"""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

import triton
from headscope.kernels.triton.configuration import Configuration
from headscope.kernels.visibility import Visibility


class Cells(NamedTuple):
    """Layout of tokens in the tiles of the kernel.

    A request tile of ``tile`` tokens is ``parts`` cells of ``step`` tokens, of which the last may
    have fewer; a cell has ``slots`` places, a power of two.
    """

    tile: int
    parts: int
    step: int
    slots: int

    @property
    def plain(self) -> bool:
        """Whether no slot is empty, so that tokens follow one another."""
        return self.parts * self.slots == self.tile

    def count(self, length: int) -> int:
        """Count the cells of a text."""
        return -(-length // self.tile) * self.parts

    def starts(self, length: int, block: int, device: torch.device) -> Int[Tensor, " block"]:
        """First token of every tile of the kernel, which has ``block`` slots."""
        cell = torch.arange(0, self.count(length), block // self.slots, device=device)
        return (cell // self.parts * self.tile + cell % self.parts * self.step).clamp_max(length)


def cells_of(tile: int, block: int) -> Cells:
    """Split request tiles into cells that fit a kernel's tile.

    >>> cells_of(200, 128)
    Cells(tile=200, parts=2, step=100, slots=128)
    """
    parts = -(-tile // block)
    step = -(-tile // parts)
    return Cells(tile, parts, step, triton.next_power_of_2(step))


def bound_queries(
    visibility: Visibility, cells: Cells, chosen: Configuration, batch: int
) -> Int[Tensor, "batch key_block 4"]:
    """Bound the query tiles to visit for each tile of keys: start, full_start, full_stop, stop.

    Between ``full_start`` and ``full_stop`` every query sees every key, as to order and window.
    """
    device = visibility.low.device
    first_key = cells.starts(visibility.keys, chosen.keys, device)
    last_key = torch.cat((first_key[1:], first_key.new_tensor([visibility.keys]))) - 1
    first_query = cells.starts(visibility.queries, chosen.queries, device)
    stop_query = torch.cat((first_query[1:], first_query.new_tensor([visibility.queries])))
    low, high = visibility.low, visibility.high

    # low and high never decrease: the queries that see some key, or all keys, are consecutive.
    def tiles_below(query: Tensor) -> Tensor:
        return torch.searchsorted(first_query, query)

    start = torch.searchsorted(high, first_key, right=True)[None]
    stop = torch.searchsorted(low, last_key, right=True)[None]
    full_start = torch.searchsorted(high, last_key, right=True)[None]
    full_stop = torch.searchsorted(low, first_key, right=True)[None]
    if visibility.query_mask is not None:
        # Padding at either end is not visited at all.
        position = torch.arange(visibility.queries, device=device)
        real = visibility.query_mask
        first = position.where(real, visibility.queries).amin(dim=1, keepdim=True)
        last = position.where(real, -1).amax(dim=1, keepdim=True)
        start, stop = torch.maximum(start, first), torch.minimum(stop, last + 1)
    empty = stop <= start
    start = torch.searchsorted(stop_query, start, right=True)
    stop = torch.where(empty, start, tiles_below(stop))
    full_start = tiles_below(full_start).clamp(start, stop)
    full_stop = torch.searchsorted(stop_query, full_stop, right=True)
    full_stop = full_stop.clamp(full_start, stop)
    if cells.plain:
        # Short tiles at the end of the text are edges.
        full_stop = full_stop.clamp_max(visibility.queries // chosen.queries)
        full_stop[..., visibility.keys // chosen.keys :] = 0
        full_stop = torch.maximum(full_stop, full_start)
    edges = (start, full_start, full_stop, stop)
    bounds = torch.stack([edge.expand_as(start) for edge in edges], dim=2)
    return bounds.expand(batch, -1, -1).to(torch.int32).contiguous()

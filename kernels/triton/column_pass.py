"""The host side of the pass over columns: received weights and pooled maps."""

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headscope.kernels.request import Request
from headscope.kernels.statistics.received_last import ending
from headscope.kernels.triton.bands import ChosenLaunch, narrow
from headscope.kernels.triton.cells import Cells, bound_queries, cells_of
from headscope.kernels.triton.columns import reduce_columns
from headscope.kernels.triton.configuration import (
    COLUMNS,
    Configuration,
    architecture,
    later,
    padded,
)
from headscope.kernels.triton.launch import DEAD, Launch, PerQuery

DENSE = frozenset({"received", "received_max", "pooled_mean", "pooled_max"})
"""Statistics that one launch computes together."""


class Pooled(NamedTuple):
    """Pooled maps as kernel arguments, (batch, head, row, column) in cells; None if not wanted."""

    sums: Tensor | None
    peaks: Tensor | None
    rows: int
    columns: int


def arguments(
    launch: Launch, lse: PerQuery, names: Collection[str], tile: int, chosen: Configuration
) -> tuple[dict[str, Any], dict[str, Tensor], Cells]:
    """Collect the kernel's arguments for names of ``DENSE``, and its outputs, maps in cells."""
    q, k = launch.q, launch.k
    batch, heads, queries, _ = q.shape
    keys = k.shape[2]
    smaller = min(chosen.queries, chosen.keys)
    pooling = not {"pooled_mean", "pooled_max"}.isdisjoint(names)
    cells = cells_of(tile if pooling else smaller, smaller)
    shape = (batch, heads, cells.count(queries), cells.count(keys))
    outputs = {}
    for name in sorted(DENSE.intersection(names)):
        if name.startswith("pooled"):
            # Cells of keys that no query sees are not visited.
            outputs[name] = torch.zeros(shape, dtype=torch.float32, device=q.device)
        else:
            outputs[name] = torch.empty(batch, heads, keys, dtype=torch.float32, device=q.device)
    named = launch.arguments(chosen) | {
        "lse": lse.contiguous(),
        "sums_out": outputs.get("received"),
        "peaks_out": outputs.get("received_max"),
        "pooled": Pooled(outputs.get("pooled_mean"), outputs.get("pooled_max"), *shape[2:]),
        "cells": cells,
        "bounds": bound_queries(launch.visibility, cells, chosen, batch),
        "SIGMOID": launch.spec.sigmoid,
        "CELL": cells.slots,
        "PLAIN": cells.plain,
    }
    return named, outputs, cells


def run(
    launch: Launch,
    lse: PerQuery,
    names: Collection[str],
    request: Request,
    configuration: Configuration | None = None,
) -> dict[str, Tensor]:
    """Sum, or take the maximum of, the weights of columns and tiles, before ``finish``."""
    chosen = configuration or choose(launch, architecture(launch.q.device))
    outputs: dict[str, Tensor] = {}
    if not DENSE.isdisjoint(names):
        outputs |= reduce(launch, lse, names, request.tile, chosen)
    if "pattern" in names:
        # Tiles of one token.
        outputs["pattern"] = reduce(launch, lse, {"pooled_mean"}, 1, chosen)["pooled_mean"]
    if "received_later" in names:
        band = narrow(launch, *request.horizon)
        outputs["received_later"] = reduce(band, lse, {"received"}, 1, chosen)["received"]
    if "received_last" in names:
        last = ending(launch.visibility, request.last)
        end = ChosenLaunch(launch.q, launch.k, launch.v, launch.spec, last)
        rows = lse.masked_fill(~last[:, None], DEAD)
        outputs["received_last"] = reduce(end, rows, {"received"}, 1, chosen)["received"]
    return outputs


def reduce(
    launch: Launch, lse: PerQuery, names: Collection[str], tile: int, chosen: Configuration
) -> dict[str, Tensor]:
    """Run the kernel, and put the cells of each tile together."""
    named, outputs, cells = arguments(launch, lse, names, tile, chosen)
    grid = (named["bounds"].shape[1], launch.q.shape[1], launch.q.shape[0])
    reduce_columns[grid](**named, num_warps=chosen.warps, num_stages=chosen.stages)
    if cells.parts > 1:
        for name, whole in (("pooled_mean", torch.sum), ("pooled_max", torch.amax)):
            if name in outputs:
                parts = torch.unflatten(outputs[name], 3, (-1, cells.parts))
                parts = torch.unflatten(parts, 2, (-1, cells.parts))
                outputs[name] = whole(parts, dim=(3, 5))
    return outputs


def choose(launch: Launch, arch: int) -> Configuration:
    """Choose the tiles of this pass."""
    return later(arch, padded(launch.q.shape[3]), launch.q.dtype, COLUMNS, heavy=launch.heavy)

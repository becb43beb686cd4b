"""The host side of the exact top k: ranked candidates from the kernel, or whole rows."""

import itertools
import math
from collections.abc import Collection
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

import triton
from headscope.kernels.request import Request
from headscope.kernels.triton.configuration import ROWS, Configuration, architecture, later, padded
from headscope.kernels.triton.gathers import write_lines, write_panel
from headscope.kernels.triton.launch import HIDDEN, Launch, PerQuery
from headscope.kernels.triton.topk_rows import select_top_rows

LARGEST_COUNT = 32
"""Largest k that is searched among candidates; for more, all rows are ranked in full."""
ROOM = 64
"""Candidates of a row that may lie above the threshold. Expected are hardly more than k."""
PANEL = 64
"""Queries and keys of a tile of rows that are ranked in full."""
SCRATCH = 1 << 25
"""Elements of scratch memory: 256 MB of candidates, or 128 MB of whole rows."""


Ranks = Shaped[Tensor, "batch head query rank"]
"""Logits of the largest weights of each query, or their keys, in order."""


def arguments(
    launch: Launch, batch: int, heads: slice, count: int, chosen: Configuration
) -> dict[str, Any]:
    """Collect the arguments of the kernel for some heads of one sequence, with its outputs."""
    queries = launch.q.shape[2]
    rows = (heads.stop - heads.start) * queries
    device = launch.q.device
    return launch.arguments(chosen) | {
        "values": torch.full((rows, ROOM + count), HIDDEN, dtype=torch.float32, device=device),
        "keys": torch.zeros((rows, ROOM + count), dtype=torch.int32, device=device),
        "reached": torch.empty(rows, dtype=torch.int32, device=device),
        "bounds": launch.bounds(chosen.queries, chosen.keys),
        "first_head": heads.start,
        "batch": batch,
        "count": count,
        "ROOM": ROOM,
    }


def run(
    launch: Launch,
    lse: PerQuery,
    names: Collection[str],
    request: Request,
    configuration: Configuration | None = None,
) -> dict[str, Tensor]:
    """Find the largest weights of each query and their keys."""
    batch, heads, queries, _ = launch.q.shape
    count = request.k
    shape = (batch, heads, queries, count)
    values = torch.full(shape, HIDDEN, dtype=torch.float32, device=launch.q.device)
    keys = torch.zeros(shape, dtype=torch.int64, device=launch.q.device)
    if count <= LARGEST_COUNT:
        chosen = configuration or choose(launch, architecture(launch.q.device))
        step = max(SCRATCH // (queries * (ROOM + count)), 1)
        for sequence in range(batch):
            for first in range(0, heads, step):
                part = slice(first, min(first + step, heads))
                crowded = rank(launch, sequence, part, chosen, values, keys)
                rank_lines(launch, crowded, values, keys)
    else:
        rank_panels(launch, values, keys)
    hidden = values <= HIDDEN / 2
    outputs = {}
    if "topk" in names:
        gap = values - lse[..., None]
        weights = torch.sigmoid(gap * math.log(2)) if launch.spec.sigmoid else torch.exp2(gap)
        outputs["topk"] = weights.masked_fill_(hidden, float("nan"))
    if "topk_key" in names:
        outputs["topk_key"] = keys.float().masked_fill_(hidden, float("nan"))
    return outputs


def rank(
    launch: Launch, batch: int, heads: slice, chosen: Configuration, values: Ranks, keys: Ranks
) -> Int[Tensor, " row"]:
    """Rank the candidates of some heads, in place; return the rows that have too many."""
    queries, count = values.shape[2:]
    named = arguments(launch, batch, heads, count, chosen)
    grid = (triton.cdiv(queries, chosen.queries), heads.stop - heads.start)
    select_top_rows[grid](**named, num_warps=chosen.warps, num_stages=chosen.stages)
    best, index = named["values"].topk(count, dim=1)
    values[batch, heads] = best.view(-1, queries, count)
    keys[batch, heads] = named["keys"].long().gather(1, index).view(-1, queries, count)
    first = (batch * values.shape[1] + heads.start) * queries
    crowded: Tensor = torch.nonzero(named["reached"] > ROOM)[:, 0] + first
    return crowded


def rank_lines(launch: Launch, lines: Int[Tensor, " row"], values: Ranks, keys: Ranks) -> None:
    """Rank all keys of some rows, in place, a chunk of rows at a time."""
    width = launch.k.shape[2]
    count = min(values.shape[3], width)
    rows = max(SCRATCH // width, 1)
    for part in (lines[at : at + rows] for at in range(0, len(lines), rows)):
        out = torch.empty(len(part), width, dtype=torch.float32, device=launch.q.device)
        write_lines[(len(part), triton.cdiv(width, PANEL))](
            **launch.arguments(), lines=part, out=out, heads=launch.q.shape[1],
            KEYS=PANEL, num_warps=4,
        )  # fmt: skip
        best, index = out.topk(count, dim=1)
        values.view(-1, values.shape[3])[part, :count] = best
        keys.view(-1, keys.shape[3])[part, :count] = index


def rank_panels(launch: Launch, values: Ranks, keys: Ranks) -> None:
    """Rank all keys of all rows, in place, some queries of a head at a time."""
    batch, heads, queries, _ = launch.q.shape
    width = launch.k.shape[2]
    tiles = Configuration(PANEL, PANEL, warps=4, stages=1)
    count = min(values.shape[3], width)
    rows = min(max(SCRATCH // width // PANEL, 1) * PANEL, queries)
    out = torch.empty(rows, width, dtype=torch.float32, device=launch.q.device)
    for sequence, head, first in itertools.product(
        range(batch), range(heads), range(0, queries, rows)
    ):
        rows_out = out[: min(rows, queries - first)]
        write_panel[(triton.cdiv(len(rows_out), PANEL), triton.cdiv(width, PANEL))](
            **launch.arguments(tiles), out=rows_out, first_query=first, batch=sequence, head=head,
            num_warps=4,
        )  # fmt: skip
        best, index = rows_out.topk(count, dim=1)
        values[sequence, head, first : first + rows, :count] = best
        keys[sequence, head, first : first + rows, :count] = index


def choose(launch: Launch, arch: int) -> Configuration:
    """Choose the tiles of this pass."""
    return later(arch, padded(launch.q.shape[3]), launch.q.dtype, ROWS, heavy=launch.heavy)

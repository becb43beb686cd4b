"""The host side of the pass over rows: reductions of the weights of each query."""

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

import triton
from headscope.kernels.request import Request
from headscope.kernels.statistics.distance_hist import edges
from headscope.kernels.statistics.span_mass import spans_of
from headscope.kernels.triton.bands import narrow
from headscope.kernels.triton.configuration import (
    LATER_FLOAT32,
    ROWS,
    ROWS_KEPT,
    SPANS_FLOAT32,
    Configuration,
    architecture,
    later,
    padded,
)
from headscope.kernels.triton.launch import Launch, PerQuery
from headscope.kernels.triton.rows import reduce_rows

MASS = "mass"
"""Name of the sum of a row's weights, which shows whether lse and logits belong together."""
SPAN_CHUNK = 64
"""Spans of one launch."""


class RowOutputs(NamedTuple):
    """Outputs of the row kernel, with their inputs; None is not computed."""

    mass: Tensor | None = None
    entropy: Tensor | None = None
    """Σ p (lse - logit) of the keys, in nats."""
    mean: Tensor | None = None
    spread: Tensor | None = None
    clip: float | None = None
    bins: Tensor | None = None
    bin_count: int = 0
    value: Tensor | None = None
    norms: Tensor | None = None
    """Norm of every value: float32 (batch, KV head, key)."""
    spans: Tensor | None = None
    span_ids: Tensor | None = None
    """int32 (batch, key)."""
    first_span: int = 0
    span_count: int = 0
    reach: Tensor | None = None
    """Only keys at a distance below this count: int32 (batch, head, query)."""


def arguments(
    launch: Launch, lse: PerQuery, row_outputs: RowOutputs, chosen: Configuration
) -> dict[str, Any]:
    """Collect the arguments of the kernel."""
    spans = min(row_outputs.span_count - row_outputs.first_span, SPAN_CHUNK)
    return launch.arguments(chosen) | {
        "lse": lse.contiguous(),
        "outputs": row_outputs,
        "bounds": launch.bounds(chosen.queries, chosen.keys),
        "SIGMOID": launch.spec.sigmoid,
        "SPANS": max(triton.next_power_of_2(max(spans, 1)), 16),
        "BINS": triton.next_power_of_2(max(row_outputs.bin_count, 1)),
    }


def launch_rows(
    launch: Launch,
    lse: PerQuery,
    row_outputs: RowOutputs,
    configuration: Configuration | None = None,
) -> None:
    """Fill the outputs of ``row_outputs``."""
    chosen = configuration or choose(launch, row_outputs, architecture(launch.q.device))
    batch, heads, queries, _ = launch.q.shape
    grid = (triton.cdiv(queries, chosen.queries), heads, batch)
    named = arguments(launch, lse, row_outputs, chosen)
    reduce_rows[grid](**named, num_warps=chosen.warps, num_stages=chosen.stages)


def run(
    launch: Launch,
    lse: PerQuery,
    names: Collection[str],
    request: Request,
    configuration: Configuration | None = None,
) -> dict[str, Tensor]:
    """Reduce the weights of each query."""
    q = launch.q
    outputs, parts = plan(launch, names, request)
    for part in parts:
        launch_rows(launch, lse, part, configuration)
    if "entropy" in outputs and launch.sinks is not None:
        sinks = launch.sinks[:, None]
        outputs["entropy"] += torch.exp2(sinks - lse) * (lse - sinks) * math.log(2)
    if "recent_mass" in names:
        band = narrow(launch, 0, request.recent - 1)
        recent = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
        launch_rows(band, lse, RowOutputs(mass=recent), configuration)
        outputs["recent_mass"] = recent
    if "effective_span" in names:
        outputs["effective_span"] = effective_span(launch, lse, request.share, configuration)
    return outputs


def plan(
    launch: Launch, names: Collection[str], request: Request
) -> tuple[dict[str, Tensor], list[RowOutputs]]:
    """Allocate statistics of whole rows, and divide them among launches."""
    q = launch.q
    rows = q.shape[:3]
    outputs: dict[str, Tensor] = {}

    def empty(name: str, *wide: int) -> Tensor | None:
        if name not in names:
            return None
        outputs[name] = torch.empty(*rows, *wide, dtype=torch.float32, device=q.device)
        return outputs[name]

    mean = empty("distance")
    spread = empty("distance_variance")
    if spread is not None and mean is None:
        mean = torch.empty_like(spread)
    bins = len(edges(request, max(rows[2], launch.k.shape[2])))
    # Bins and spans take a launch each: together they do not fit in the registers.
    parts = [
        RowOutputs(
            mass=empty(MASS),
            entropy=empty("entropy"),
            mean=mean,
            spread=spread,
            clip=None if request.clip is None else float(request.clip),
            value=empty("value_mass"),
            norms=norms_of(launch) if "value_mass" in names else None,
        ),
        RowOutputs(bins=empty("distance_hist", bins), bin_count=bins),
    ]
    if "span_mass" in names:
        assert request.spans is not None
        count = len(spans_of(request, launch.k.shape[2]))
        masses = empty("span_mass", count)
        ids = request.spans.to(q.device, torch.int32).contiguous()
        for first in range(0, count, SPAN_CHUNK):
            parts.append(RowOutputs(spans=masses, span_ids=ids, first_span=first, span_count=count))
    return outputs, [part for part in parts if any(isinstance(value, Tensor) for value in part)]


def mass_of(launch: Launch, lse: PerQuery, chosen: Bool[Tensor, "batch key"]) -> PerQuery:
    """Add the weights of the chosen keys."""
    mass = torch.empty(*launch.q.shape[:3], 1, dtype=torch.float32, device=launch.q.device)
    ids = torch.where(chosen, 0, -1).to(torch.int32)
    launch_rows(launch, lse, RowOutputs(spans=mass, span_ids=ids.contiguous(), span_count=1))
    return mass[..., 0]


def norms_of(launch: Launch) -> Float[Tensor, "batch kv_head key"]:
    """Measure the values; padding, whatever it holds, has none."""
    norms: Tensor = launch.v.float().norm(dim=-1)
    mask = launch.visibility.key_mask
    return norms if mask is None else norms.masked_fill(~mask[:, None], 0.0)


def within(
    launch: Launch,
    lse: PerQuery,
    reach: Int[Tensor, "batch head query"],
    configuration: Configuration | None = None,
) -> PerQuery:
    """Add the weights of the keys at a distance below ``reach``, to either side."""
    mass = torch.empty(launch.q.shape[:3], dtype=torch.float32, device=launch.q.device)
    row_outputs = RowOutputs(mass=mass, reach=reach.to(torch.int32).contiguous())
    launch_rows(launch, lse, row_outputs, configuration)
    return mass


def effective_span(
    launch: Launch, lse: PerQuery, share: float, configuration: Configuration | None = None
) -> PerQuery:
    """Halve the interval that the shortest distance with enough mass lies in, pass by pass.

    One pass over the keys inside the interval for each binary digit of the longest distance.
    """
    longest = max(launch.q.shape[2], launch.k.shape[2])
    holds = torch.full(launch.q.shape[:3], longest, dtype=torch.int32, device=launch.q.device)
    misses = torch.zeros_like(holds)
    threshold = share * within(launch, lse, holds, configuration)
    for _ in range((longest - 1).bit_length()):
        middle = (misses + holds) // 2
        enough = within(launch, lse, middle, configuration) >= threshold
        holds = torch.where(enough, middle, holds)
        misses = torch.where(enough, misses, middle)
    return holds.clamp_min(1).float()


def choose(launch: Launch, row_outputs: RowOutputs, arch: int) -> Configuration:
    """Choose the tiles of this pass."""
    kept = (row_outputs.bins, row_outputs.spans, row_outputs.spread)
    usual = ROWS if all(output is None for output in kept) else ROWS_KEPT
    chosen = later(arch, padded(launch.q.shape[3]), launch.q.dtype, usual, heavy=launch.heavy)
    if row_outputs.spans is not None and chosen == LATER_FLOAT32[80, 128]:
        return SPANS_FLOAT32
    return chosen

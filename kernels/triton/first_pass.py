"""The host side of the first pass: z, and the normaliser, maximum and entropy of every row."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import triton
from headscope.kernels.triton.configuration import Configuration, architecture, forward, padded
from headscope.kernels.triton.forward import attend_queries
from headscope.kernels.triton.launch import Launch, PerQuery


def _room(size: int, alignment: int, stream: int | None) -> Tensor:
    """Allocate GPU memory for the TMA descriptors of Triton."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


@dataclass(frozen=True, eq=False)
class FirstPass:
    """Results of the forward pass for the statistics and for later passes.

    ``lse`` is the normaliser of every row in base 2, 1e30 at rows without keys; 0 for sigmoid
    weights. The largest weight and the entropy, in nats, of every row are NaN at rows without keys,
    and None where not asked for.
    """

    z: Float[Tensor, "batch head query value_size"]
    lse: PerQuery
    max_weight: PerQuery | None
    entropy: PerQuery | None


def arguments(
    launch: Launch, chosen: Configuration, *, max_weight: bool, entropy: bool
) -> dict[str, Any]:
    """Collect the arguments of the forward kernel, with its outputs, not yet written."""
    q, v, spec = launch.q, launch.v, launch.spec
    rows = q.shape[:3]

    def empty(needed: bool) -> Tensor | None:
        return torch.empty(rows, dtype=torch.float32, device=q.device) if needed else None

    return launch.arguments(chosen) | {
        "v": launch.operand(v),
        "z": torch.empty(*rows, v.shape[3], dtype=torch.float32, device=q.device),
        "lse": empty(True),
        "max_weight": empty(max_weight),
        "entropy": empty(entropy),
        "sinks": launch.sinks,
        "bounds": launch.bounds(chosen.queries, chosen.keys),
        "VALUE_SIZE": v.shape[3],
        "BLOCK_VALUE": padded(v.shape[3]),
        "SIGMOID": spec.sigmoid,
        "PLAIN": launch.plain and not spec.sigmoid,
        "TMA": chosen.tma and launch.aligned,
    }


def choose(launch: Launch, arch: int) -> Configuration:
    """Look up the tile sizes of the forward kernel for a call."""
    return forward(
        arch,
        max(padded(launch.q.shape[3]), padded(launch.v.shape[3])),
        launch.q.dtype,
        launch.q.shape[2],
        tma=launch.plain and launch.aligned,
        heavy=launch.heavy,
    )


def run(
    launch: Launch,
    *,
    max_weight: bool = False,
    entropy: bool = False,
    configuration: Configuration | None = None,
) -> FirstPass:
    """Run the fused forward pass."""
    batch, heads, queries, _ = launch.q.shape
    if configuration is None:
        configuration = choose(launch, architecture(launch.q.device))
    named = arguments(launch, configuration, max_weight=max_weight, entropy=entropy)
    grid = (triton.cdiv(queries, configuration.queries), heads, batch)
    if named["TMA"] and launch.q.device.type == "cuda":
        triton.set_allocator(_room)
    attend_queries[grid](**named, num_warps=configuration.warps, num_stages=configuration.stages)
    return FirstPass(named["z"], named["lse"], named["max_weight"], named["entropy"])

"""The host side of the gathers: weights of a few keys for each query."""

from collections.abc import Collection
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

import triton
from headscope.kernels.request import NO_KEY, Request
from headscope.kernels.statistics.offset_mass import keys_at
from headscope.kernels.triton import row_pass
from headscope.kernels.triton.configuration import padded
from headscope.kernels.triton.gathers import gather_weights
from headscope.kernels.triton.launch import Launch, Operand, PerQuery

CHANNELS = 8192
"""Channels of all queries of a program: more would not fit in the registers."""
WARPS = 4
LARGEST_COUNT = 64
"""First keys up to which they are gathered; more are a span of the pass over rows."""


def arguments(
    launch: Launch, lse: PerQuery, keys: Int[Tensor, "#batch #query choice occurrence"]
) -> dict[str, Any]:
    """Collect the arguments of the kernel, with its output, not yet written."""
    batch, heads, queries, size = launch.q.shape
    choices, occurrences = keys.shape[2:]
    indices = keys.flatten(2).to(launch.q.device, torch.int32).contiguous()
    indices = indices.expand(batch, queries, -1)
    shape = (batch, heads, queries, choices)
    return launch.arguments() | {
        "lse": lse.contiguous(),
        "chosen": Operand(indices, batch=indices.stride(0), token=indices.stride(1), channel=1),
        "out": torch.empty(shape, dtype=torch.float32, device=launch.q.device),
        "choices": choices,
        "occurrences": occurrences,
        "SIGMOID": launch.spec.sigmoid,
        "QUERIES": min(CHANNELS // padded(size), 128),
    }


def weights_at(
    launch: Launch, lse: PerQuery, keys: Int[Tensor, "#batch #query choice occurrence"]
) -> Float[Tensor, "batch head query choice"]:
    """Add up the weights at the occurrences of each choice: 0 at hidden keys and at -1."""
    batch, heads, queries, _ = launch.q.shape
    named = arguments(launch, lse, keys)
    gather_weights[(triton.cdiv(queries, named["QUERIES"]), heads, batch)](**named, num_warps=WARPS)
    mass: Tensor = named["out"]
    return mass


def run(
    launch: Launch, lse: PerQuery, names: Collection[str], request: Request
) -> dict[str, Tensor]:
    """Gather the weights of statistics of a few keys."""
    outputs = {}
    if "first_mass" in names:
        count = min(request.first, launch.k.shape[2])
        if count <= LARGEST_COUNT:
            keys = launch.visibility.first_keys(count)
            outputs["first_mass"] = weights_at(launch, lse, keys[:, :, None])[..., 0]
        else:
            outputs["first_mass"] = row_pass.mass_of(launch, lse, is_first(launch, count))
    if "offset_mass" in names:
        keys = keys_at(launch.visibility, request.offsets)
        exists = (keys != NO_KEY)[:, None]
        mass = weights_at(launch, lse, keys[..., None])
        outputs["offset_mass"] = mass.masked_fill_(~exists, float("nan"))
    if "target_mass" in names:
        assert request.targets is not None
        keys = request.targets.to(launch.q.device).transpose(1, 2)
        absent = torch.all(keys == NO_KEY, dim=-1)[:, None]
        mass = weights_at(launch, lse, keys)
        outputs["target_mass"] = mass.masked_fill_(absent, float("nan"))
    return outputs


def is_first(launch: Launch, count: int) -> Bool[Tensor, "batch key"]:
    """Which keys are among the first real ones of their sequence."""
    visibility = launch.visibility
    real = torch.ones(1, visibility.keys, dtype=torch.bool, device=launch.q.device)
    if visibility.key_mask is not None:
        real = visibility.key_mask
    before = real.long().cumsum(dim=1) - real.long()
    if visibility.lengths is not None:
        before = before - before[:, visibility.begin]
    return (real & (before < count)).expand(launch.q.shape[0], -1)

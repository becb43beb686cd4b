"""Massive activations: located in the residual stream as it passes, and set to other numbers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headscope.analyses._stats.bootstrap import Array
from headscope.kernels.api import Request
from headscope.kernels.errors import ResourceLimit
from headscope.probes.attention.forward import Reader, run
from headscope.probes.attention.residual_stream import watching
from headscope.probes.models.model import Model
from headscope.probes.prompts.prompt_batch import batches

TOKENS = 8192
# More than this in one prompt are no outliers.
MOST = 1000
# The largest magnitudes that are followed from layer to layer.
SIZES = ("largest", "second", "third", "median")


@dataclass(frozen=True)
class Activation:
    """One massive activation: its address, and its value where it is first massive."""

    prompt: int
    boundary: int
    position: int
    channel: int
    value: float


@dataclass(frozen=True)
class Stream:
    """Summary of the residual stream and of the values on its way."""

    # Magnitudes (prompt, boundary, size), in the order of SIZES.
    sizes: Array
    # Every massive (prompt, position, channel), at the first boundary where it is massive.
    massive: list[Activation]
    # Norms of the values (prompt, layer, kv_head, key), NaN beyond a prompt's length.
    norms: Array
    # Largest magnitude of every token of the first prompt over all boundaries (position,).
    first: Array


def locate(model: Model, ids: Sequence[Sequence[int]], least: float, ratio: float) -> Stream:
    """Find the activations that are above ``least`` and ``ratio`` times the median of their layer.

    One pass; nothing of the size of the residual stream is kept. The median is that of the
    magnitudes of one prompt at one boundary, over tokens and channels.
    """
    longest = max(map(len, ids))
    sizes = np.full((len(ids), model.layers + 1, len(SIZES)), np.nan)
    norms = np.full((len(ids), model.layers, model.kv_heads, longest), np.nan)
    first = np.zeros(len(ids[0]))
    massive: dict[tuple[int, int, int], Activation] = {}
    rows: list[int] = []

    def take(boundary: int, stream: Tensor) -> None:
        for row, states in zip(rows, stream.detach().float(), strict=True):
            size = states.abs()
            median = float(size.median())
            top = size.flatten().topk(3).values.tolist()
            sizes[row, boundary] = [*top, median]
            if row == 0:
                np.maximum(first, size.amax(dim=1).cpu().numpy(), out=first)
            positions = ((size > least) & (size >= ratio * median)).nonzero().tolist()
            if len(positions) > MOST:
                raise ResourceLimit(
                    f"least, ratio: {len(positions)} activations pass in one prompt; raise them"
                )
            for position, channel in positions:
                value = float(states[position, channel])
                activation = Activation(row, boundary, position, channel, value)
                massive.setdefault((row, position, channel), activation)

    def values(call: Any, outputs: Any, z: Any) -> None:
        norms[rows, call.layer, :, : call.value.shape[2]] = (
            call.value.detach().float().norm(dim=-1).cpu().numpy()
        )

    with torch.no_grad(), watching(model, take):
        for batch in batches(ids, TOKENS):
            rows[:] = batch
            tokens = torch.tensor([ids[row] for row in rows])
            run(model, tokens, Reader(Request(stats=()), (), values), head=False)
    return Stream(sizes, list(massive.values()), norms, first)


def mean_values(massive: Sequence[Activation]) -> dict[tuple[int, int], float]:
    """Average the values of each (boundary, channel) over the tokens where it is massive."""
    groups: dict[tuple[int, int], list[float]] = {}
    for activation in massive:
        groups.setdefault((activation.boundary, activation.channel), []).append(activation.value)
    return {key: float(np.mean(values)) for key, values in groups.items()}


def draw_others(
    massive: Sequence[Activation], ids: Sequence[Sequence[int]], size: int, seed: int
) -> list[Activation]:
    """Draw as many other activations, at the same boundaries of the same prompts."""
    generator = np.random.default_rng(seed)
    excluded = {(address.prompt, address.position, address.channel) for address in massive}
    drawn = []
    for activation in massive:
        prompt, address = activation.prompt, (activation.position, activation.channel)
        while (prompt, *address) in excluded:
            position = int(generator.integers(len(ids[prompt])))
            address = (position, int(generator.integers(size)))
        drawn.append(Activation(prompt, activation.boundary, *address, 0.0))
    return drawn


@contextmanager
def replaced(model: Model, prompt: int, values: Mapping[Activation, float]) -> Iterator[None]:
    """Run one prompt with activations of its residual stream set to other values."""

    def take(boundary: int, stream: Tensor) -> Tensor | None:
        replaced_here = [
            activation
            for activation in values
            if (activation.prompt, activation.boundary) == (prompt, boundary)
        ]
        if not replaced_here:
            return None
        changed = stream.clone()
        for activation in replaced_here:
            changed[:, activation.position, activation.channel] = values[activation]
        return changed

    with watching(model, take):
        yield

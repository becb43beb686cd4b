"""Massive activations: found in the residual stream as it passes, and set to other numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headscope.kernels.api import Request
from headscope.kernels.errors import ResourceLimit
from headscope.probes.attention.forward import Reader, run
from headscope.probes.attention.residual_stream import watching
from headscope.probes.prompts.prompt_batch import batches

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

TOKENS = 8192
# More than this in one prompt are no outliers.
MOST = 1000
# The largest magnitudes that are followed from layer to layer.
SIZES = ("largest", "second", "third", "median")


@dataclass(frozen=True)
class Found:
    """One massive activation: where it stands, and its value where it is first massive."""

    prompt: int
    boundary: int
    position: int
    channel: int
    value: float


@dataclass(frozen=True)
class Stream:
    """What was seen of the residual stream and of the values on its way.

    Attributes
    ----------
    sizes
        Magnitudes (prompt, boundary, size), in the order of ``SIZES``.
    found
        Every massive (prompt, position, channel), at the first boundary where it is massive.
    norms
        Norms of the values (prompt, layer, kv_head, key), NaN beyond a prompt's length.
    first
        Largest magnitude of every token of the first prompt over all boundaries (position,).
    """

    sizes: NDArray[np.float64]
    found: list[Found]
    norms: NDArray[np.float64]
    first: NDArray[np.float64]


def look(model: Model, ids: Sequence[Sequence[int]], least: float, ratio: float) -> Stream:
    """Find the activations that are above ``least`` and ``ratio`` times the median of their layer.

    One pass; nothing of the size of the residual stream is kept. The median is that of the
    magnitudes of one prompt at one boundary, over tokens and channels.

    Raises
    ------
    ResourceLimit
        When so many pass that they are no outliers.
    """
    longest = max(map(len, ids))
    sizes = np.full((len(ids), model.layers + 1, len(SIZES)), np.nan)
    norms = np.full((len(ids), model.layers, model.kv_heads, longest), np.nan)
    first = np.zeros(len(ids[0]))
    seen: dict[tuple[int, int, int], Found] = {}
    rows: list[int] = []

    def take(boundary: int, stream: Tensor) -> None:
        for row, one in zip(rows, stream.detach().float(), strict=True):
            size = one.abs()
            median = float(size.median())
            top = size.flatten().topk(3).values.tolist()
            sizes[row, boundary] = [*top, median]
            if row == 0:
                np.maximum(first, size.amax(dim=1).cpu().numpy(), out=first)
            places = ((size > least) & (size >= ratio * median)).nonzero().tolist()
            if len(places) > MOST:
                raise ResourceLimit(
                    f"least, ratio: {len(places)} activations pass in one prompt; raise them"
                )
            for position, channel in places:
                value = float(one[position, channel])
                seen.setdefault(
                    (row, position, channel), Found(row, boundary, position, channel, value)
                )

    def values(call: Any, outputs: Any, z: Any) -> None:
        norms[rows, call.layer, :, : call.value.shape[2]] = (
            call.value.detach().float().norm(dim=-1).cpu().numpy()
        )

    with torch.no_grad(), watching(model, take):
        for batch in batches(ids, TOKENS):
            rows[:] = batch
            given = torch.tensor([ids[row] for row in rows])
            run(model, given, Reader(Request(stats=()), (), values), head=False)
    return Stream(sizes, list(seen.values()), norms, first)


def means(found: Sequence[Found]) -> dict[tuple[int, int], float]:
    """Average the values of each (boundary, channel) over the tokens where it is massive."""
    groups: dict[tuple[int, int], list[float]] = {}
    for one in found:
        groups.setdefault((one.boundary, one.channel), []).append(one.value)
    return {where: float(np.mean(values)) for where, values in groups.items()}


def others(
    found: Sequence[Found], ids: Sequence[Sequence[int]], size: int, seed: int
) -> list[Found]:
    """Draw as many other places, at the same boundaries of the same prompts."""
    generator = np.random.default_rng(seed)
    taken = {(one.prompt, one.position, one.channel) for one in found}
    drawn = []
    for one in found:
        place = (one.position, one.channel)
        while (one.prompt, *place) in taken:
            place = (
                int(generator.integers(len(ids[one.prompt]))), int(generator.integers(size)),
            )  # fmt: skip
        drawn.append(Found(one.prompt, one.boundary, *place, 0.0))
    return drawn


@contextmanager
def setting(
    model: Model, prompt: int, places: Sequence[Found], values: Mapping[Found, float]
) -> Iterator[None]:
    """Run one prompt with activations of its residual stream set to given values."""

    def take(boundary: int, stream: Tensor) -> Tensor | None:
        here = [one for one in places if (one.prompt, one.boundary) == (prompt, boundary)]
        if not here:
            return None
        changed = stream.clone()
        for one in here:
            changed[:, one.position, one.channel] = values[one]
        return changed

    with watching(model, take):
        yield

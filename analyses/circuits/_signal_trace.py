"""Trace of one prompt: which heads wrote what made a head attend, and which theirs in turn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from headscope.analyses._measurements import score_directions
from headscope.analyses._measurements.score_directions import Directions
from headscope.analyses.circuits import _pairs

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from headscope.analyses._measurements.score_sources import Source
    from headscope.analyses._measurements.score_terms import Scores, Split

Head = tuple[int, int]
SIDES = ("query", "key")


@dataclass(frozen=True)
class Rule:
    """Depth and width of a trace, and which directions carry the signal."""

    depth: int
    width: int
    fires: float
    share: float


@dataclass(frozen=True)
class Firing:
    """A head that attends from a query to a key, and the directions that carry its score."""

    head: Head
    pair: _pairs.Pair
    split: Split
    directions: Directions
    chosen: np.ndarray
    writers: dict[str, list[tuple[Source, float]]]


@dataclass
class Trace:
    """The firings of one prompt, the first one's first, and the signals between heads."""

    firings: list[Firing] = field(default_factory=list)
    signals: dict[tuple[Head, Head, str], float] = field(default_factory=dict)


def trace(
    scores: Scores, capture: xr.Dataset, prompt: int, head: Head, query: int, rule: Rule
) -> Trace:
    """Trace the score of a head at a query back to earlier heads, level by level.

    A head that fires, whose weight on its most attended key but the first reaches a bar, and whose
    score is above 0, is followed: at its query and its key the heads with the largest signals along
    its directions are next.
    """
    result = Trace()
    level, visited = [(head, query)], {(head, query)}
    for depth in range(rule.depth):
        following = []
        for target, at in level:
            fired = _firing(scores, capture, prompt, target, at, rule, first=not depth)
            if fired is None:
                continue
            result.firings.append(fired)
            for side, writers in fired.writers.items():
                position = fired.pair.query if side == "query" else fired.pair.key
                for source, signal in writers:
                    upstream = (source.layer, source.head)
                    edge = (upstream, target, side)
                    result.signals[edge] = result.signals.get(edge, 0.0) + signal
                    if position > 0 and (upstream, position) not in visited:
                        visited.add((upstream, position))
                        following.append((upstream, position))
        level = following
    return result


def _firing(
    scores: Scores, capture: xr.Dataset, prompt: int, head: Head, query: int, rule: Rule,
    *, first: bool,
) -> Firing | None:  # fmt: skip
    row = _pairs.weights_at(capture, prompt, head[0], query)[head[1]]
    pair = _pairs.pair(row, query)
    if pair.weight < rule.fires and not first:
        return None
    split = scores.split(capture, head, prompt, query, pair.key)
    if split.score <= 0:
        return None
    directions = score_directions.singular(split)
    chosen = score_directions.smallest_set(directions.terms, rule.share)
    writers = {}
    for side, signals in zip(SIDES, directions.signals(chosen), strict=True):
        heads = [
            (source, float(signal))
            for source, signal in zip(split.sources, signals, strict=True)
            if source.kind == "head" and signal > 0
        ]
        writers[side] = sorted(heads, key=lambda entry: -entry[1])[: rule.width]
    return Firing(head, pair, split, directions, chosen, writers)


def removed(
    scores: Scores, capture: xr.Dataset, prompt: int, firing: Firing, side: str
) -> tuple[Tensor, Tensor]:
    """Return the signal of the writers of one side as a vector of the stream, and their rest."""
    part, position = ("q", firing.pair.query) if side == "query" else ("k", firing.pair.key)
    whole = sum(
        (scores.vector(capture, prompt, position, source) for source, _ in firing.writers[side]),
        torch.zeros(capture.sizes["channel"], dtype=torch.float64),
    )
    own = firing.directions.left if side == "query" else firing.directions.right
    along = scores.side(firing.head, part).basis @ torch.from_numpy(own[:, firing.chosen])
    plane, _ = torch.linalg.qr(along)
    signal = plane @ (plane.T @ whole)
    return signal, whole - signal


def random_signal(
    scores: Scores, firing: Firing, side: str, signal: Tensor, generator: torch.Generator
) -> Tensor:
    """Return a random vector, as long as a signal, of what the head reads at this side."""
    basis = scores.side(firing.head, "q" if side == "query" else "k").basis
    drawn = basis @ torch.randn(basis.shape[1], generator=generator, dtype=torch.float64)
    scaled: Tensor = drawn * (signal.norm() / drawn.norm().clamp_min(1e-30))
    return scaled

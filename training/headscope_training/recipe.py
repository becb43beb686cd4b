"""What a recipe says: shape, rows, schedule, loss and optimizers of one model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel


class Phase(NamedTuple):
    """Steps up to `until`; `lengths` is a choice of row lengths with their shares.

    `mixture` says what the rows are made of, each recipe in its own terms. The rate is flat, or
    falls to 2 % of itself by the end.
    """

    until: int
    rate: float
    lengths: tuple[tuple[int, float], ...]
    mixture: Any = None
    falls: bool = False


class Batch(NamedTuple):
    """Rows of one step: ids (batch, length + 1), weights (batch, length) of the predictions.

    `kinds` names the kind of each row, where the log tells them apart.
    """

    ids: Tensor
    weights: Tensor
    kinds: Sequence[str] = ()

    def rows(self, chosen: slice) -> Batch:
        """Some of the rows."""
        return Batch(self.ids[chosen], self.weights[chosen], self.kinds[chosen])


class Recipe(ABC):
    """Recipe of one model; everything is seeded, so a step draws the same rows every time.

    `forward` is the function that ``--compile`` compiles. `snapshots` are the steps whose weights
    ship; without any, the last checkpoint does.
    """

    seed: int
    phases: tuple[Phase, ...]
    warmup: int
    snapshots: tuple[int, ...] = ()
    # Processes of one thread meet once a step; threads would wait for each other at every
    # operation, which is slow on cores that others use too.
    processes = 1
    forward: Callable[..., Tensor]

    @abstractmethod
    def config(self) -> PreTrainedConfig:
        """Shape of the model."""

    @abstractmethod
    def build(self) -> PreTrainedModel:
        """The model at its start, from the state of torch's generator."""

    @abstractmethod
    def prepare(self, out: Path) -> None:
        """Write the tokenizer into the folder of the checkpoint; read what rows are cut from."""

    @abstractmethod
    def draw(self, step: int) -> Batch:
        """Rows of one step, ``<bos>`` or the like first."""

    @abstractmethod
    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Weighted mean of the cross-entropy, and parts of it to log."""

    @abstractmethod
    def optimizers(self, model: Any) -> list[tuple[torch.optim.Optimizer, float]]:
        """Optimizers, each with its factor of the phase's rate."""

    def limit_gradients(self, model: PreTrainedModel) -> None:
        """Change gradients before a step; by default their norm is clipped to 1."""
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    def phase_at(self, step: int) -> tuple[Phase, int]:
        """The phase of a step, and the step at which it starts."""
        start = 0
        for phase in self.phases:
            if step < phase.until:
                break
            start = phase.until
        return phase, start

    def rate_at(self, step: int) -> float:
        """Learning rate: a linear warm-up, then what the phase says."""
        phase, start = self.phase_at(step)
        rate = phase.rate * min(1.0, (step + 1) / self.warmup)
        if phase.falls:
            rate *= 1 - 0.98 * (step - start) / (phase.until - start)
        return rate

    def draw_length(self, step: int, generator: torch.Generator) -> int:
        """Length of the rows of a step."""
        lengths = self.phase_at(step)[0].lengths
        shares = torch.tensor([share for _, share in lengths])
        return lengths[int(torch.multinomial(shares, 1, generator=generator))][0]

    def generator(self, step: int) -> torch.Generator:
        """The generator of one step."""
        return torch.Generator().manual_seed(self.seed * 1_000_000 + step)


def random_repeats(
    low: int, high: int, period: int, length: int, generator: torch.Generator
) -> Tensor:
    """Random ids of ``low ... high - 1``, said again and again (length,)."""
    again = torch.randint(low, high, (period,), generator=generator)
    return again.repeat(length // period + 1)[:length]


def causal_mask(length: int) -> Tensor:
    """Zeros, and minus infinity above the diagonal (length, length)."""
    return torch.full((length, length), -torch.inf).triu(1)

"""Attention calls restricted to keys at some distances, or to some queries."""

from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headscope.kernels.triton.launch import Launch
from headscope.kernels.visibility import Visibility


@dataclass(frozen=True, eq=False)
class Band(Visibility):
    """Visible keys ``nearest`` to ``farthest`` tokens before the query."""

    nearest: int = 0
    farthest: int = 0

    @cached_property
    def low(self) -> Int[Tensor, " query"]:
        """First visible key inside the band of every query."""
        return torch.maximum(super().low, self.positions - self.farthest)

    @cached_property
    def high(self) -> Int[Tensor, " query"]:
        """One past the last visible key inside the band of every query."""
        high = (self.positions - self.nearest + 1).clamp_min(0)
        return torch.minimum(super().high, high)


@dataclass(frozen=True, eq=False)
class BandLaunch(Launch):
    """An attention call whose keys are narrowed to a band; weights stay those of the whole row."""

    nearest: int = 0
    farthest: int = 0

    @cached_property
    def visibility(self) -> Visibility:
        """Which keys of the band each query may see."""
        full = self.spec.visibility(self.q.shape[2], self.k.shape[2], self.q.device)
        options = {field.name: getattr(full, field.name) for field in fields(full)}
        return Band(**options, nearest=self.nearest, farthest=self.farthest)


@dataclass(frozen=True, eq=False)
class ChosenLaunch(Launch):
    """An attention call restricted to some queries."""

    chosen: Bool[Tensor, "batch query"]

    @cached_property
    def visibility(self) -> Visibility:
        """Which keys the chosen queries may see."""
        full = self.spec.visibility(self.q.shape[2], self.k.shape[2], self.q.device)
        real = self.chosen.expand(self.q.shape[0], -1)
        return replace(full, query_mask=real)


def narrow(launch: Launch, nearest: int, farthest: int) -> BandLaunch:
    """Restrict a call to keys ``nearest`` to ``farthest`` tokens before their query."""
    return BandLaunch(launch.q, launch.k, launch.v, launch.spec, nearest, farthest)

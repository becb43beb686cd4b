"""Replace attention patterns by named ones: previous token, first token, itself, uniform."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from headscope.kernels.api import WeightEdits
from headscope.kernels.errors import InvalidInput, NotApplicable, ResourceLimit
from headscope.probes.interventions.base import HeadEdit

if TYPE_CHECKING:
    from headscope.probes.models.model import Geometry

PATTERNS = {
    "previous": "each query attends to the token before it, the first one to itself",
    "first": "each query attends to the first token",
    "itself": "each query attends to itself",
    "uniform": "each query attends to all keys that it sees alike",
}
# Logits divided by this are equal to every digit that float32 holds of a weight.
FLAT = 1e6
# Weights of a layer beyond this would take more than 2 GB.
MOST = 2**29


@dataclass(frozen=True)
class Inject(HeadEdit):
    """Replace the weights of some heads by a named pattern, at any length.

    The head then reads where the pattern attends; its values and output projection stay. Uniform is
    made by a temperature, so it respects masks and windows, and a learned sink logit counts as one
    more key; a fixed pattern of the same head takes precedence.

    Sources: Xiao et al., Human Guided Exploitation of Interpretable Attention Patterns; TAB.

    Attributes
    ----------
    pattern
        ``previous``, ``first``, ``itself`` or ``uniform``.
    """

    pattern: str = field(metadata={"choices": PATTERNS})

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise InvalidInput(
                f"Inject.pattern: no {self.pattern!r}; choose one of {', '.join(PATTERNS)}"
            )

    def check(self, shape: Geometry) -> None:
        """Refuse heads that the model does not have, and patterns that need one text."""
        super().check(shape)
        if shape.crossed and self.pattern in ("previous", "itself"):
            raise NotApplicable(
                f"Inject.pattern: {self.pattern} needs keys of the same text, and cross-attention "
                "has others; use first or uniform"
            )

    def inside(self, layer: int, shape: tuple[int, int, int, int]) -> WeightEdits | None:
        """Replace the patterns of the chosen heads."""
        rows = self.rows(layer)
        if not rows:
            return None
        _, heads, queries, keys = shape
        if self.pattern == "uniform":
            temperature = torch.ones(heads)
            temperature[rows] = FLAT
            return WeightEdits(temperature=temperature)
        # Where a cache holds earlier keys, the last query is still the last key.
        positions = torch.arange(queries) + keys - queries
        looked = {
            "previous": (positions - 1).clamp_min(0),
            "first": torch.zeros_like(positions),
            "itself": positions,
        }[self.pattern]
        if heads * queries * keys > MOST:
            raise ResourceLimit(
                f"Inject.pattern: {self.pattern} needs {queries} × {keys} weights for each of "
                f"{heads} heads; give shorter texts, or use uniform, Window or KnockOut"
            )
        pattern = torch.full((1, heads, queries, keys), math.nan)
        pattern[0, rows] = torch.nn.functional.one_hot(looked, keys).float()
        return WeightEdits(pattern=pattern)

"""Block-sparse attention mask as an intervention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool
from torch import Tensor

from headscope.kernels.api import WeightEdits
from headscope.kernels.errors import InvalidInput
from headscope.probes.interventions.base import Edit, check_shape, digest

if TYPE_CHECKING:
    from headscope.probes.models.model import Geometry


@dataclass(frozen=True)
class Blocks(Edit):
    """Restrict heads to some blocks of keys for each block of queries, on prompts of one length.

    Block-sparse attention (SeerAttention), and context that is encoded in parallel: blocks that see
    themselves alone. A query without a visible key outputs 0.

    Attributes
    ----------
    members
        Number of the block of every position, from 0.
    seen
        Which blocks of keys the queries of each block see, for every head.
    """

    members: Sequence[int]
    seen: Bool[Tensor, "layer head block block"]

    def __post_init__(self) -> None:
        if self.seen.ndim != 4 or self.seen.dtype != torch.bool:
            raise InvalidInput(
                f"Blocks.seen: {self.seen.dtype} {tuple(self.seen.shape)}; "
                "give True and False with dims layer, head, block of queries, block of keys"
            )
        blocks = self.seen.shape[-1]
        if not self.members or not 0 <= min(self.members) <= max(self.members) < blocks:
            raise InvalidInput(
                f"Blocks.members: give every position a block from 0 to {blocks - 1}"
            )

    def inside(self, layer: int, shape: tuple[int, int, int, int]) -> WeightEdits | None:
        """Hide the blocks that one layer's heads may not see."""
        if bool(self.seen[layer].all()):
            return None
        batch, _, queries, keys = shape
        if not len(self.members) == queries == keys:
            raise InvalidInput(
                f"Blocks.members: {len(self.members)} positions, but this prompt has "
                f"{queries} queries and {keys} keys"
            )
        spans = torch.tensor(self.members, dtype=torch.long).expand(batch, -1)
        bias = torch.zeros(self.seen.shape[1:]).masked_fill_(~self.seen[layer], -math.inf)
        return WeightEdits(span_bias=bias, query_spans=spans, key_spans=spans)

    def check(self, shape: Geometry) -> None:
        """Refuse a table for other layers and heads than the model has."""
        blocks = self.seen.shape[-1]
        check_shape("Blocks.seen", self.seen, (shape.layers, shape.heads, blocks, blocks))

    def describe(self) -> dict[str, object]:
        """Describe the edit, the number of blocks and a digest of the table."""
        return {
            "edit": "Blocks",
            "positions": len(self.members),
            "blocks": self.seen.shape[-1],
            "seen_sha256": digest(self.seen),
        }

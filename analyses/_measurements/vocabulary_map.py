"""Which tokens a head's weights map a token to: M = W_E' W_V W_O W_U, some rows, by chunks.

``W_E'`` is the token's embedding in the first layer, and behind it what the first block's MLP makes
of it. The layer's own norm is applied to it; the last norm is its gain alone, since its scale moves
no rank. Neither whole maps nor whole rows of more than `CELLS` numbers are held.

Source: Inferring Functionality of Attention Heads from their Parameters (MAPS, 2412.11965).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.analyses._measurements import token_pairs
from headscope.analyses._measurements.residual_writes import read_norm
from headscope.analyses._measurements.unembedding import final_norm
from headscope.kernels.errors import NotApplicable
from headscope.probes.attention import projections

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

CELLS = 2**24
"""Numbers of a head's rows that are held at once (64 MB)."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one head's map, each up to a positive factor.

    ``logits`` are those of the targets (source, target); ``largest`` and ``smallest`` are the
    outermost logits of each row (source, rank), and ``slack`` what rounding makes differ (source,).
    """

    logits: Float[Tensor, "source target"]
    largest: Float[Tensor, "source rank"]
    smallest: Float[Tensor, "source rank"]
    slack: Float[Tensor, " source"]

    def among_largest(self, first: int) -> Bool[Tensor, "source target"]:
        """Return which targets are above all but the first of their row; what ties is not."""
        return self.logits > (self.largest[:, first] + self.slack)[:, None]

    def among_smallest(self, first: int) -> Bool[Tensor, "source target"]:
        """Return which targets are below all but the last of their row; what ties is not."""
        return self.logits < (self.smallest[:, first] - self.slack)[:, None]


class VocabularyMap:
    """The maps of a model's heads from tokens to tokens."""

    def __init__(self, model: Model) -> None:
        module: Any = model.module
        embedding = module.get_output_embeddings()
        if embedding is None:
            raise NotApplicable(f"model: {model.name} has no unembedding, so no vocabulary")
        self.model = model
        self.table = embedding.weight.detach()
        self.norm = read_norm(final_norm(model), model, self.table.shape[1])
        self.weights = projections.read(model, ("v", "o"))

    @torch.no_grad()
    def rows(
        self, sources: Sequence[int], targets: Sequence[int], most: int
    ) -> Iterator[tuple[int, int, Rows]]:
        """Yield rows at targets, with their ``most`` outermost logits, as (layer, head, rows)."""
        target_rows = self.table[list(targets)].float().cpu()
        for layer in self.model.geometry.attending:
            values = token_pairs.values(self.model, layer, sources, self.weights)
            for head in range(self.model.heads):
                left, right = self._factors(values, layer, head)
                yield layer, head, self._rows(left, right, target_rows, most)

    @torch.no_grad()
    def salient(
        self, layer: int, head: int, tokens: Sequence[int], count: int
    ) -> list[tuple[int, int]]:
        """Pair the tokens from which a head writes most with the token that each raises most.

        What it writes is measured before the final norm, over the length of what it reads, which
        the layer's own norm makes alike for all tokens. Both are among ``tokens``.
        """
        values = token_pairs.values(self.model, layer, tokens, self.weights)
        left, right = self._factors(values, layer, head)
        outward = self.weights.of(layer, "o")[head].float()
        chosen = (left @ outward).norm(dim=-1).topk(min(count, len(tokens))).indices
        logits = left[chosen] @ (right @ self.table[list(tokens)].float().cpu().T)
        best = logits.argmax(-1)
        return [
            (tokens[int(source)], tokens[int(target)])
            for source, target in zip(chosen, best, strict=True)
        ]

    def _factors(self, values: Tensor, layer: int, head: int) -> tuple[Tensor, Tensor]:
        """Return what a row of the map is the product of, before the unembedding."""
        # The last norm is linear up to a factor of each row, which is positive.
        right = self.norm.linear(self.weights.of(layer, "o")[head]).float()
        return values[head * self.model.kv_heads // self.model.heads].float(), right

    def _rows(
        self, left: Float[Tensor, "source size"], right: Float[Tensor, "size residual"],
        target_rows: Float[Tensor, "target residual"], most: int,
    ) -> Rows:  # fmt: skip
        largest, smallest = (torch.empty(len(left), 0) for _ in range(2))
        width = max(1, CELLS // (len(left) + len(right)))
        for start in range(0, len(self.table), width):
            logits = left @ (right @ self.table[start : start + width].float().cpu().T)
            count = min(most, logits.shape[1])
            ends = logits.topk(count).values, logits.topk(count, largest=False).values
            largest, smallest = (
                torch.cat(pair, dim=1) for pair in zip((largest, smallest), ends, strict=True)
            )
        count = min(most, largest.shape[1])
        largest = largest.topk(count).values
        smallest = smallest.topk(count, largest=False).values
        slack = 1e-5 * torch.maximum(largest[:, 0].abs(), smallest[:, 0].abs())
        return Rows((left @ right) @ target_rows.T, largest, smallest, slack)

"""The whole attention matrix in float64, for the oracle of each statistic."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.kernels.request import Request


@dataclass(eq=False)
class DenseAttention:
    """Dense attention in float64: every row of every head at once.

    ``logits`` are -inf at hidden keys, and ``sinks``, those of the learned sinks, where there is
    none. Rows of ``weights`` without a visible key are zero. ``values`` are repeated for every
    query head, and zero at padding. ``visible`` is which key each query may see, bias and edits
    aside; ``sequence`` the number of the sequence that each key belongs to; ``real_keys`` which
    keys are no padding; ``positions`` the position of every query among the keys, in tokens.
    """

    logits: Float[Tensor, "batch head query key"]
    weights: Float[Tensor, "batch head query key"]
    values: Float[Tensor, "batch head key size"]
    sinks: Float[Tensor, "1 head 1 1"]
    visible: Bool[Tensor, "batch 1 query key"]
    sequence: Int[Tensor, " key"]
    real_keys: Bool[Tensor, "batch key"]
    positions: Int[Tensor, " query"]
    request: Request

    @property
    def outcomes(self) -> Float[Tensor, "batch head query outcome"]:
        """Logits of the keys and, last, of the sink."""
        batch, _, queries, _ = self.logits.shape
        return torch.cat((self.logits, self.sinks.expand(batch, -1, queries, 1)), dim=-1)

    @property
    def attendable(self) -> Bool[Tensor, "batch head query key"]:
        """Keys that a query sees after bias and edits."""
        return torch.isfinite(self.logits)

    @property
    def ranks(self) -> Float[Tensor, "batch 1 1 key"]:
        """Rank of each key among the real keys of its sequence, infinite at padding."""
        ranks = torch.full(self.real_keys.shape, torch.inf)
        for row, real in enumerate(self.real_keys.tolist()):
            counts: dict[int, int] = {}
            for key, number in enumerate(self.sequence.tolist()):
                if real[key]:
                    ranks[row, key] = counts.get(number, 0)
                    counts[number] = counts.get(number, 0) + 1
        return ranks[:, None, None]

    @property
    def distances(self) -> Float[Tensor, "query key"]:
        """Distance between query and key, in tokens, clipped at the request's ``clip``."""
        key = torch.arange(self.weights.shape[-1]).double()
        distances = torch.cdist(self.positions[:, None].double(), key[:, None], p=1)
        clip = self.request.clip
        return distances if clip is None else distances.where(distances < clip, float(clip))

    def members(self, length: int) -> Float[Tensor, "tile position"]:
        """Return, as 0 or 1, which tile each position belongs to."""
        tile = torch.arange(length) // self.request.tile
        return torch.nn.functional.one_hot(tile).double().T

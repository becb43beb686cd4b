"""What the terms of a score come from: who wrote to the residual stream before a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from headscope.analyses._runtime.results import label


@dataclass(frozen=True)
class Source:
    """A component that writes to the stream before a layer; ``head`` is -1 where it is no head.

    ``kind`` is one of ``embedding``, ``position``, ``head``, ``rest`` (what else a layer writes:
    its MLP and its biases) and ``bias`` (what norm and projection add to every query or key). Where
    an autoencoder splits what heads write: ``feature``, ``features`` (all others), ``sae_bias`` and
    ``sae_error``.
    """

    kind: str
    layer: int = -1
    head: int = -1
    feature: int = -1

    def __str__(self) -> str:
        names = {"head": label((self.layer, self.head)), "rest": f"L{self.layer} MLP"}
        names |= {"embedding": "embedding", "position": "position embedding", "bias": "biases"}
        names |= {
            "feature": f"L{self.layer} feature {self.feature}",
            "features": f"L{self.layer} other features",
            "sae_bias": f"L{self.layer} SAE bias",
            "sae_error": f"L{self.layer} SAE error",
        }
        return names[self.kind]


class Parts(Protocol):
    """Parts that the outputs of some heads of a layer are split into."""

    layer: int
    heads: Sequence[int]
    sources: tuple[Source, ...]

    def split(
        self, z: Float[Tensor, "head *position size"]
    ) -> Float[Tensor, "part written *position size"]:
        """Return the part of every source in what heads write; they sum to it."""

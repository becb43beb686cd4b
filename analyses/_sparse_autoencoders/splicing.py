"""Other vectors in place of head outputs, row by row of a batch, and the loss under them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from headscope.analyses._interventions.next_token_loss import mean_of, sweep_measures
from headscope.analyses._sparse_autoencoders.site import Site
from headscope.probes.interventions.base import Edit

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Int

    from headscope.analyses._interventions.ablation import Measure
    from headscope.probes.models.model import Geometry, Model

# Turns the vectors of a site into those that take their place.
Rewrite = Callable[[Float[Tensor, "... size"]], Float[Tensor, "... size"]]


@dataclass(frozen=True)
class Splice(Edit):
    """Replace the vectors of a site by what ``rewrites`` make of them.

    The rows of a batch are as many blocks as there are rewrites, one after another.
    """

    site: Site
    rewrites: Sequence[Rewrite]

    def apply(
        self, layer: int, z: Float[Tensor, "batch head query size"]
    ) -> Float[Tensor, "batch head query size"]:
        """Rewrite the outputs of one layer."""
        if layer != self.site.layer:
            return z
        blocks = self.site.gather(z).float().cpu().chunk(len(self.rewrites))
        rewritten = [rewrite(block) for rewrite, block in zip(self.rewrites, blocks, strict=True)]
        return self.site.scatter(z, torch.cat(rewritten))

    def check(self, shape: Geometry) -> None:
        """Refuse a site that the model does not have."""
        self.site.check(shape)


def losses(
    model: Model,
    prompts: Sequence[Sequence[int]],
    site: Site,
    rewrites: Sequence[Rewrite],
    also: Sequence[Measure] = (),
) -> NDArray[np.float64]:
    """Return the mean loss of prompts under every rewrite, in nats a token, and other measures.

    The dims are measure, prompt, rewrite, with the loss first; ``also`` as in `ablation.sweep`, at
    all positions.
    """

    def edit(numbers: Int[Tensor, " variant"], prompts: list[int]) -> Splice:
        return Splice(site, [rewrites[at] for at in numbers.tolist()])

    starts = torch.full((len(rewrites),), site.layer)
    return sweep_measures(model, prompts, [mean_of(prompts), *also], starts, edit)


def without(feature: int, sae: Callable[..., Tensor], direction: Tensor) -> Rewrite:
    """Return the rewrite that takes one feature's part out of the vectors, and leaves the rest.

    ``sae`` encodes vectors, ``direction`` is the feature's row of the decoder.
    """
    return lambda vectors: vectors - sae(vectors)[..., feature, None] * direction

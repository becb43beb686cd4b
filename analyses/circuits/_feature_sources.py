"""Features of a sparse autoencoder as what writes to the residual stream, in place of its heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analyses._measurements.score_sources import Source
from headscope.kernels.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr

    from headscope.analyses._sparse_autoencoders.autoencoder import SparseAutoencoder
    from headscope.probes.models.model import Model

# Kinds of sources beside the features that are named.
REST = ("features", "sae_bias", "sae_error")


class FeatureParts:
    """Head outputs as named features, all other features, the decoder's bias and the error.

    The parts sum to the outputs of the heads at the site of the autoencoder.
    """

    def __init__(self, sae: SparseAutoencoder, model: Model, named: Sequence[int]) -> None:
        self.sae, self.layer = sae, sae.site.layer
        self.heads: Sequence[int] = sae.site.heads(model.heads)
        self.named = list(named)
        self.sources = (
            *(Source("feature", self.layer, feature=feature) for feature in named),
            *(Source(kind, self.layer) for kind in REST),
        )

    @torch.no_grad()
    def split(
        self, z: Float[Tensor, "head *position size"]
    ) -> Float[Tensor, "part written *position size"]:
        """Return the parts of the outputs of all heads of the layer."""
        vectors = z[self.heads].movedim(0, -2).flatten(-2)
        fired = self.sae.encode(vectors.float()).to(z)
        decoder, bias = self.sae.decoder.to(z), self.sae.decoder_bias.to(z)
        features = fired[..., self.named].unsqueeze(-1) * decoder[self.named]
        decoded = fired @ decoder
        rest = torch.stack(
            [decoded - features.sum(-2), bias.expand_as(decoded), vectors - decoded - bias], -2
        )
        parts: Tensor = torch.cat([features, rest], -2).movedim(-2, 0)
        return parts.reshape(*parts.shape[:-1], len(self.heads), -1).movedim(-2, 1)


def check(sae: SparseAutoencoder, model: Model, layer: int) -> None:
    """Refuse an autoencoder of another model, or of a layer that a head does not read."""
    sae.check(model.heads, model.geometry.value_size)
    sae.site.check(model.geometry)
    if sae.site.layer >= layer:
        raise InvalidInput(
            f"sae: it splits what {sae.site} writes, which a head of layer {layer} does not read; "
            f"name a head behind layer {sae.site.layer}"
        )


@torch.no_grad()
def strongest(
    sae: SparseAutoencoder,
    capture: xr.Dataset,
    positions: Int[Tensor, "prompt place"],
    count: int,
) -> list[int]:
    """Return the features with the largest squared writes to z, summed over positions."""
    heads = sae.site.heads(capture.sizes["head"])
    energy = torch.zeros(sae.features)
    for prompt, at in enumerate(positions.tolist()):
        z = capture["z"].isel(prompt=prompt, layer=sae.site.layer, head=heads, query=at)
        vectors = torch.from_numpy(z.transpose("query", "head", ...).values).float().flatten(1)
        energy += (sae.encode(vectors) * sae.decoder.norm(dim=1)).square().sum(0)
    order = energy.argsort(descending=True, stable=True)[:count]
    return [feature for feature in order.tolist() if energy[feature] > 0]

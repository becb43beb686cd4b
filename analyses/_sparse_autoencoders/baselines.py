"""What a sparse autoencoder is held against: codes of as many numbers a vector.

Principal components keep the same few directions for every vector. Random directions are as many
as the autoencoder has; of every vector the best fitting ones are taken, with the coefficients of
least squares, which no encoder can beat on these directions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Numbers of the chosen directions that are held at once (64 MB).
CELLS = 2**24


@dataclass(frozen=True)
class PrincipalComponents:
    """The directions of most variance, and the mean of the vectors they were fitted on."""

    mean: Float[Tensor, " size"]
    directions: Float[Tensor, "component size"]

    def __call__(self, vectors: Float[Tensor, "... size"]) -> Float[Tensor, "... size"]:
        """Return the reconstruction."""
        off = vectors - self.mean
        return self.mean + off @ self.directions.T @ self.directions


@dataclass(frozen=True)
class RandomDirections:
    """Random directions of norm 1, of which the ``k`` that fit a vector best are taken."""

    mean: Float[Tensor, " size"]
    directions: Float[Tensor, "feature size"]
    k: int

    def __call__(self, vectors: Float[Tensor, "... size"]) -> Float[Tensor, "... size"]:
        """Return the reconstruction."""
        off = (vectors - self.mean).flatten(0, -2)
        rows = max(1, CELLS // (self.k * off.shape[1] + len(self.directions)))
        fitted = torch.cat([self._fitted(part) for part in torch.split(off, rows)])
        return self.mean + fitted.view_as(vectors)

    def _fitted(self, off: Float[Tensor, "example size"]) -> Float[Tensor, "example size"]:
        chosen = self.directions[(off @ self.directions.T).abs().topk(self.k, dim=1).indices]
        gram = chosen @ chosen.transpose(1, 2) + 1e-6 * torch.eye(self.k)
        weights = torch.linalg.solve(gram, (chosen @ off[:, :, None]))
        fitted: Tensor = (weights * chosen).sum(1)
        return fitted


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of vectors, in float64, summed up batch by batch."""

    mean: Float[Tensor, " size"]
    covariance: Float[Tensor, "size size"]

    def components(self, count: int) -> PrincipalComponents:
        """Return the first principal components."""
        directions = torch.linalg.eigh(self.covariance).eigenvectors.flip(1)[:, :count]
        return PrincipalComponents(self.mean.float(), directions.T.float())


def moments(batches: Iterable[Float[Tensor, "... size"]]) -> Moments:
    """Sum up the moments of vectors."""
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for batch in batches:
        rows = batch.flatten(0, -2).double()
        count, total, products = count + len(rows), total + rows.sum(0), products + rows.T @ rows
    mean = total / count
    return Moments(mean, products / count - torch.outer(mean, mean))


def random_directions(
    mean: Float[Tensor, " size"], features: int, k: int, seed: int
) -> RandomDirections:
    """Draw random directions."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(features, len(mean), generator=generator)
    count = min(k, len(mean), features)
    return RandomDirections(mean, nn.functional.normalize(drawn, dim=1), count)

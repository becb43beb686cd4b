"""TextSpan: the words of a vocabulary that span what a vector varies in, one after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analyses._measurements.residual_writes import Write, read_norm
from headscope.analyses._measurements.unembedding import final_norm
from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.models.model import Model


@dataclass(frozen=True, eq=False)
class Span:
    """Directions in the output space of a head, orthonormal, in the order in which they were chosen.

    ``chosen`` are their places in the pool of directions.
    """

    chosen: Int[Tensor, " label"]
    directions: Float[Tensor, "label dim"]


@dataclass(frozen=True, eq=False)
class Space:
    """The space that a head can write into: its dims in the residual stream, and z in them."""

    basis: Float[Tensor, "dim channel"]
    map: Float[Tensor, "size dim"]

    def keeping(self, directions: Float[Tensor, "some dim"]) -> Float[Tensor, "size size"]:
        """Return the map of z that keeps what it writes along orthonormal directions."""
        inside = self.map @ directions.T @ directions
        return inside @ torch.linalg.pinv(self.map)


def space(outward: Float[Tensor, "size channel"], write: Write) -> Space:
    """Span the outputs of a head, through the norm before the residual stream where there is one."""
    if write.norm is not None:
        outward = write.norm.linear(outward)
    _, sizes, basis = torch.linalg.svd(outward, full_matrices=False)
    basis = basis[sizes > 1e-6 * sizes[0].clamp_min(1e-30)]
    return Space(basis, outward @ basis.T)


def word_directions(model: Model, words: list[int]) -> Float[Tensor, "word channel"]:
    """Return the directions of the residual stream that raise words over the mean of all, length 1.

    They are rows of the unembedding before the final norm, up to its scale.
    """
    module: Any = model.module
    unembedding = module.get_output_embeddings()
    if unembedding is None:
        raise NotApplicable(f"model: {model.name} has no unembedding, so no vocabulary")
    table = unembedding.weight.detach()
    mean = table.mean(0, dtype=torch.float64).cpu()
    norm = read_norm(final_norm(model), model, table.shape[1])
    rows = norm.transposed(table[words].double().cpu() - mean)
    return torch.nn.functional.normalize(rows, dim=-1).float()


def random_directions(
    count: int, dims: int, channels: int, seed: int
) -> Float[Tensor, "direction dim"]:
    """Draw directions of the residual stream at random and return what a space of ``dims`` sees.

    Whichever space it is: random directions know none from another.
    """
    generator = np.random.default_rng(seed)
    inside = generator.standard_normal((count, dims), dtype=np.float32)
    outside = generator.chisquare(channels - dims, count) if channels > dims else 0.0
    length = np.sqrt(np.square(inside).sum(-1) + outside)
    return torch.from_numpy(inside / length[:, None]).float()


def greedy(
    pool: Float[Tensor, "direction dim"], covariance: Float[Tensor, "dim dim"], count: int
) -> Span:
    """Choose directions along which vectors vary most, each without what earlier ones explain.

    ``pool`` are directions of length 1 in the residual stream, projected into the space: what it
    has little of varies little.
    """
    pool, rest = pool.clone(), covariance.to(pool)
    chosen, directions = [], []
    for _ in range(min(count, len(rest))):
        best = ((pool @ rest) * pool).sum(-1).argmax()
        direction = torch.nn.functional.normalize(pool[best], dim=0)
        pool -= (pool @ direction)[:, None] * direction
        away = torch.eye(len(rest)) - direction[:, None] * direction
        rest = away @ rest @ away
        chosen.append(best)
        directions.append(direction)
    return Span(torch.stack(chosen), torch.stack(directions).double())


def components(covariance: Float[Tensor, "dim dim"], count: int) -> Float[Tensor, "some dim"]:
    """Return the first principal components, which no directions explain more than."""
    return torch.linalg.eigh(covariance).eigenvectors.T.flip(0)[:count]

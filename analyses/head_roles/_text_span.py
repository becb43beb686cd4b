"""TextSpan: the words of a vocabulary that span what a vector varies in, one after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analyses._measurements.residual_writes import Write, read_norm
from headscope.analyses._measurements.unembedding import final_norm
from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

LEAST = 1e-3
"""Squared length that must be left of a direction without those that were chosen before."""


@dataclass(frozen=True, eq=False)
class Space:
    """The space that a head can write into: its dims in the residual stream, and z in them."""

    basis: Float[Tensor, "dim channel"]
    map: Float[Tensor, "size dim"]

    def keeping(self, directions: Float[Tensor, "some channel"]) -> Float[Tensor, "size size"]:
        """Return the map of z that keeps what a head writes along what its space has of directions.

        What a head writes along one of them alone lies outside its space, and no z has it.
        """
        inside = torch.linalg.qr(self.basis @ directions.T).Q
        kept: Tensor = self.map @ inside @ inside.T @ torch.linalg.pinv(self.map)
        return kept


def space(outward: Float[Tensor, "size channel"], write: Write) -> Space:
    """Span the outputs of a head, through the norm before the residual stream if there is one."""
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


def random_directions(count: int, channels: int, seed: int) -> Float[Tensor, "direction channel"]:
    """Draw directions of the residual stream at random, length 1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, channels, generator=generator), dim=-1)


def greedy(
    pool: Float[Tensor, "direction channel"],
    space: Space,
    covariance: Float[Tensor, "dim dim"],
    count: int,
) -> tuple[list[int], Float[Tensor, "label channel"]]:
    """Choose directions along which outputs vary most, each without what earlier ones explain.

    ``covariance`` is that of outputs in the dims of their space. Returns the places of those that
    are chosen in the pool, and orthonormal directions of the residual stream that they span.
    """
    inside = pool @ space.basis.T.float()
    length = torch.ones(len(pool))
    spread = covariance.float()
    chosen: list[int] = []
    directions: list[Tensor] = []
    for _ in range(min(count, len(spread))):
        # What is left of a direction that is spanned already has no length to speak of.
        share = ((inside @ spread) * inside).sum(-1) / length
        best = int(torch.where(length > LEAST, share, -torch.inf).argmax())
        direction = pool[best].double()
        for earlier in directions:
            direction = direction - (direction @ earlier) * earlier
        direction = torch.nn.functional.normalize(direction, dim=0)
        along = pool @ direction.float()
        inside -= along[:, None] * (space.basis @ direction).float()
        length -= along.square()
        chosen.append(best)
        directions.append(direction)
    return chosen, torch.stack(directions)


def components(
    space: Space, covariance: Float[Tensor, "dim dim"], count: int
) -> Float[Tensor, "some channel"]:
    """Return the first principal components; no directions explain more than as many of them."""
    vectors: Tensor = torch.linalg.eigh(covariance).eigenvectors
    return vectors.T.flip(0)[:count] @ space.basis

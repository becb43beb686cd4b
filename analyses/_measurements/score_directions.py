"""Singular directions of what compares a query and a key: few of them may make the score.

The form between what is read at the query and at the key, biases, norms and the rotation at this
offset in it, is UΣVᵀ; the score is the sum over its directions of ``(x_q · u) σ (v · x_k)``. The
form is never made in the width of the stream: the factors of query and key are as wide as the head.

Source: Franco & Crovella, Sparse Attention Decomposition Applied to Circuit Tracing (2410.00340).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from headscope.analyses._measurements.score_terms import Split
    from headscope.analyses._stats.bootstrap import Array


@dataclass(frozen=True)
class Directions:
    """The directions of one pair of positions, in the bases of the two sides of its split.

    ``queries`` and ``keys`` (source, number) are what every source gives along each, the singular
    values in the queries: the product of their sums is the term of the direction.
    """

    left: Float[np.ndarray, "direction number"]
    right: Float[np.ndarray, "direction number"]
    queries: Float[np.ndarray, "source number"]
    keys: Float[np.ndarray, "source number"]

    @property
    def terms(self) -> Float[np.ndarray, " number"]:
        """Return the contribution of each direction to the score; they sum to it."""
        return np.asarray(self.queries.sum(0) * self.keys.sum(0))

    def signals(self, chosen: Int[np.ndarray, " some"]) -> tuple[Array, Array]:
        """Return what sources give the score along some directions, at the query and at the key.

        Those of each side sum to the terms of these directions.
        """
        query, key = self.queries[:, chosen], self.keys[:, chosen]
        return query @ key.sum(0), key @ query.sum(0)


def singular(split: Split) -> Directions:
    """Return the singular directions of the form of a pair."""
    left, values, right = np.linalg.svd(split.form)
    return Directions(left, right.T, split.queries @ left * values, split.keys @ right.T)


def random_basis(split: Split, generator: np.random.Generator) -> Directions:
    """Return random orthonormal directions at the key, and their images under the form."""
    size = split.form.shape[1]
    basis, _ = np.linalg.qr(generator.normal(size=(size, size)))
    form = split.form @ basis
    return Directions(form, basis, split.queries @ form, split.keys @ basis)


def effective_number(terms: Float[np.ndarray, "*batch number"]) -> Array:
    """Return the participation ratio ``(Σ|t|)² / Σt²``: how many terms share the whole.

    >>> float(effective_number(np.array([2.0, -2.0, 0.0])))
    2.0
    """
    sizes = np.abs(terms)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sizes.sum(-1) ** 2 / (sizes**2).sum(-1))


def smallest_set(terms: Float[np.ndarray, " number"], share: float) -> Int[np.ndarray, " some"]:
    """Return the fewest terms, the largest first, that sum to a share of a total above 0.

    >>> smallest_set(np.array([1.0, 4.0, -1.0, 2.0]), 0.9).tolist()
    [1, 3]
    """
    order = np.argsort(-terms, kind="stable")
    sums = terms[order].cumsum()
    count = int(np.argmax(sums >= share * terms.sum() * (1 - 1e-9)))
    return np.asarray(order[: count + 1])

"""What a sparse autoencoder keeps of head outputs: variance, the model's loss, which features fire.

Everything is summed up prompt by prompt from a stream of vectors, so that each number has an
interval over prompts and no text is held whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analyses._sparse_autoencoders.splicing import Rewrite
from headscope.analyses._stats.bootstrap import TAIL, Array, draws, percentiles

if TYPE_CHECKING:
    from headscope.analyses._sparse_autoencoders.autoencoder import SparseAutoencoder

# One example is kept of so many tokens in a row.
BLOCK = 16


@dataclass(frozen=True)
class Example:
    """The token of a text at which a feature fires most strongly in its neighbourhood."""

    activation: float
    prompt: int
    position: int


@dataclass(frozen=True)
class Firing:
    """Firing statistics of features, by prompt and over all.

    Attributes
    ----------
    tokens, fired, energy
        Tokens of every prompt (prompt,), those on which each feature fires (prompt, feature), and
        the sum of its squared activations (feature,).
    top
        The strongest activations, with prompt and position (3, feature, example); 0 where a feature
        fires in fewer places.
    """

    tokens: Array
    fired: Array
    energy: Array
    top: Array

    @property
    def l0(self) -> Array:
        """Features that fire on a token, on average (prompt,)."""
        return np.asarray(self.fired.sum(1) / self.tokens)

    @property
    def density(self) -> Array:
        """Share of the tokens that each feature fires on (prompt, feature)."""
        return np.asarray(self.fired / self.tokens[:, None])

    def examples(self, feature: int) -> list[Example]:
        """List the strongest examples of a feature, the strongest first."""
        rows = self.top[:, feature].T
        return [Example(float(a), int(p), int(t)) for a, p, t in rows if a > 0]


@torch.no_grad()
def firing(
    stream: Iterable[tuple[list[int], Float[Tensor, "batch position size"]]],
    sae: SparseAutoencoder,
    prompts: int,
    examples: int = 1,
) -> Firing:
    """Count how the features of an autoencoder fire on a stream of so many prompts."""
    tokens, energy = np.zeros(prompts), torch.zeros(sae.features, dtype=torch.float64)
    fired = np.zeros((prompts, sae.features))
    top = torch.zeros(3, sae.features, examples, dtype=torch.float64)
    for rows, vectors in stream:
        active = sae.encode(vectors)
        tokens[rows] = vectors.shape[1]
        fired[rows] = (active > 0).sum(1).numpy()
        energy += active.square().sum((0, 1), dtype=torch.float64)
        for row, values in zip(rows, active, strict=True):
            parts = [top]
            for start in range(0, len(values), BLOCK):
                best = values[start : start + BLOCK].max(0)
                address = torch.full_like(best.values, row), best.indices + start
                parts.append(torch.stack([best.values, *address]).double()[..., None])
            top = torch.cat(parts, 2)
        # The order of equals is that of the texts.
        order = top[0].argsort(dim=1, descending=True, stable=True)[:, :examples]
        top = top.gather(2, order.expand(3, -1, -1))
    return Firing(tokens, fired, energy.numpy(), top.numpy())


@torch.no_grad()
def squares(
    stream: Iterable[tuple[list[int], Float[Tensor, "batch position size"]]],
    mean: Float[Tensor, " size"],
    rewrites: Mapping[str, Rewrite],
    prompts: int,
) -> Array:
    """Return squared errors of every rewrite, and last of the mean alone (prompt, rewrite + 1)."""
    result = np.zeros((prompts, len(rewrites) + 1))
    for rows, vectors in stream:
        rewritten = [*(rewrite(vectors) for rewrite in rewrites.values()), mean.expand_as(vectors)]
        errors = [(vectors - output).double().square().sum((1, 2)) for output in rewritten]
        result[rows] = torch.stack(errors, 1).numpy()
    return result


def share_kept(
    lost: Array, whole: Array, *, seed: int = 0, resamples: int = 1000
) -> tuple[Array, Array, Array]:
    """Return ``1 − Σ lost / Σ whole`` over prompts (prompt, ...), with its bootstrap interval.

    A ratio of sums, as single prompts may have next to nothing to lose.

    >>> mean, low, high = share_kept(np.array([[1.0], [1.0]]), np.array([[4.0], [4.0]]))
    >>> mean.tolist(), low.tolist(), high.tolist()
    ([0.75], [0.75], [0.75])
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = 1 - lost.sum(0) / whole.sum(0)
        if len(lost) < 2:
            return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
        weights = draws(len(lost), resamples, seed)
        resampled = 1 - np.tensordot(weights, lost, 1) / np.tensordot(weights, whole, 1)
    return (np.asarray(mean), *percentiles(resampled, TAIL))


def windows(prompts: Sequence[Sequence[int]], example: Example, reach: int) -> list[int | None]:
    """Return the positions from ``reach`` before an example to ``reach`` behind; None past an end.

    >>> windows([[5, 6, 7]], Example(1.0, 0, 1), 2)
    [None, 0, 1, 2, None]
    """
    end = len(prompts[example.prompt])
    around = range(example.position - reach, example.position + reach + 1)
    return [at if 0 <= at < end else None for at in around]

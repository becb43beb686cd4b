"""Training of sparse autoencoders on vectors that arrive batch by batch.

Vectors are scaled so that their variance is 1 in all, and the scale is taken into the weights at
the end. The loss is the share of variance that is not explained, plus what the kind asks for, plus
the auxiliary loss of Gao et al. (2406.04093, A.2) in which features that have long been silent
explain what is left. Rows of the decoder have norm 1, and no gradient along themselves. The
thresholds of JumpReLU are trained as they are, not as logarithms, which Adam would hardly move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, get_type_hints

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headscope.analyses._runtime.options import AtLeast, Between, OneOf
from headscope.analyses._sparse_autoencoders.autoencoder import (
    KINDS,
    SparseAutoencoder,
    batch_top_k,
    jump,
    step,
    top_k,
)
from headscope.analyses._sparse_autoencoders.site import Site
from headscope.kernels.errors import InvalidInput, NotApplicable

Batch = Float[Tensor, "example size"]
Report = Callable[[float, float], None]

# Steps without a firing after which a feature counts as dead in training, and the weight of the
# auxiliary loss.
SILENT, AUXILIARY = 100, 1 / 32
# Share of the steps in which the rate rises, and in which it falls again.
RISE, FALL = 0.05, 0.2
# Width of the kernel and first threshold of JumpReLU, in vectors of variance 1.
KERNEL, FIRST_THRESHOLD = 0.03, 0.03
# Step towards the least score kept in a batch, whose running mean is the threshold of BatchTopK.
FOLLOW = 0.1


@dataclass(frozen=True)
class Settings:
    """How an autoencoder is trained.

    Attributes
    ----------
    kind
        Activation, see `autoencoder.KINDS`.
    features
        Directions in the dictionary.
    k
        Features that fire on a vector: exactly (topk), on average (batchtopk), or the L0 that the
        penalty aims at (jumprelu); relu does not read it.
    sparsity
        Weight of the penalty: of the sum of the activations (relu), or of (L0 / k − 1)² (jumprelu).
    steps, batch, rate
        Steps of Adam, vectors in each, and its rate.
    seed
        Seed of the first weights and of the order of the vectors.
    """

    kind: Annotated[str, OneOf(KINDS)] = "topk"
    features: Annotated[int, AtLeast(1)] = 1024
    k: Annotated[int, AtLeast(1)] = 16
    sparsity: Annotated[float, AtLeast(0)] = 0.1
    steps: Annotated[int, AtLeast(1)] = 1000
    batch: Annotated[int, AtLeast(2)] = 512
    rate: Annotated[float, Between(0, 1)] = 1e-3
    seed: int = 0

    def check(self) -> None:
        """Refuse numbers outside their bounds, and more active features than there are."""
        for name, annotation in get_type_hints(type(self), include_extras=True).items():
            for bound in getattr(annotation, "__metadata__", ()):
                bound.check(name, getattr(self, name))
        if self.k > self.features:
            raise InvalidInput(f"k: {self.k} of {self.features} features; give fewer")


def fit(
    vectors: Iterator[Batch],
    sample: Batch,
    site: Site,
    settings: Settings,
    report: Report | None = None,
) -> SparseAutoencoder:
    """Train an autoencoder on an endless stream of batches.

    Parameters
    ----------
    vectors
        Batches in random order.
    sample
        Vectors that the scale and the first bias, their geometric median, are measured on.
    report
        Called with (steps done, steps in all).
    """
    settings.check()
    generator = torch.Generator().manual_seed(settings.seed)
    scale = spread(sample)
    sae = _start(sample / scale, site, settings, generator)
    optimizer = torch.optim.Adam(sae.parameters(), lr=settings.rate)
    silent = torch.zeros(settings.features)
    for number in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * schedule((number + 1) / settings.steps)
        with torch.enable_grad():
            loss, active = _loss(sae, next(vectors) / scale, settings, silent >= SILENT)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        _hold_norms(sae, optimizer)
        silent = torch.where((active > 0).any(0), 0, silent + 1)
        if settings.kind == "batchtopk":
            least = active[active > 0].min() if bool((active > 0).any()) else active.new_zeros(())
            follow = FOLLOW if number else 1.0
            sae.threshold.data.lerp_(least.expand_as(sae.threshold), follow)
        if report is not None:
            report(number + 1, settings.steps)
    with torch.no_grad():
        for part in (sae.encoder_bias, sae.decoder_bias, sae.threshold):
            part.mul_(scale)
    return sae.requires_grad_(False)


def spread(vectors: Batch) -> float:
    """Return the factor that makes the variance of all numbers of a vector together 1."""
    variance = float((vectors - vectors.mean(0)).square().sum(1).mean())
    if not variance > 0:
        raise NotApplicable("vectors: all are the same, so there is nothing to explain")
    return math.sqrt(variance)


def geometric_median(vectors: Batch, rounds: int = 50) -> Float[Tensor, " size"]:
    """Return the point with the least sum of distances, by Weiszfeld's iteration.

    >>> geometric_median(torch.tensor([[0.0], [1.0], [100.0]])).round().tolist()
    [1.0]
    """
    median = vectors.mean(0)
    for _ in range(rounds):
        weights = 1 / (vectors - median).norm(dim=1).clamp_min(1e-6)
        median = (weights[:, None] * vectors).sum(0) / weights.sum()
    return median


def schedule(share: float) -> float:
    """Return the rate as a share of its highest, after a share of the steps."""
    return min(1.0, share / RISE, max((1 - share) / FALL, 0.02))


def shuffled(
    stream: Callable[[], Iterator[Batch]],
    room: int,
    batch: int,
    generator: torch.Generator,
    uses: int = 4,
) -> tuple[Batch, Iterator[Batch]]:
    """Return the first vectors of a stream, and batches in random order without an end.

    No more than ``room`` vectors are held. Where the stream has no more, they are drawn over and
    over; else half of them give way to new ones whenever each was drawn ``uses`` times on average,
    and the stream begins again at its end.
    """
    source = stream()
    held = _take(source, room, 0)
    if len(held) < 2:
        raise NotApplicable("prompts: they have fewer than 2 tokens; give more text")
    whole = len(held) < room

    def draw() -> Iterator[Batch]:
        nonlocal held, source
        while True:
            for _ in range(uses if whole else max(uses // 2, 1)):
                order = torch.randperm(len(held), generator=generator)
                parts = torch.split(order, batch)
                yield from (held[part] for part in parts if len(part) == batch or len(parts) == 1)
            if not whole:
                kept = held[torch.randperm(len(held), generator=generator)[room // 2 :]]
                while len(kept) < room:
                    kept = torch.cat([kept, _take(source, room - len(kept), kept.shape[1])])
                    if len(kept) < room:
                        source = stream()
                held = kept

    return held, draw()


def _take(source: Iterator[Batch], count: int, size: int) -> Batch:
    """Take vectors until there are ``count``, or none are left; what is too many is dropped."""
    parts: list[Batch] = []
    while sum(map(len, parts)) < count and (part := next(source, None)) is not None:
        parts.append(part)
    return torch.cat(parts)[:count] if parts else torch.empty(0, size)


def _start(
    vectors: Batch, site: Site, settings: Settings, generator: torch.Generator
) -> SparseAutoencoder:
    """Begin with random directions, the encoder being the decoder, and the bias at the median."""
    size, features = vectors.shape[1], settings.features
    sae = SparseAutoencoder(settings.kind, size, features, site, k=settings.k)
    directions = torch.randn(features, size, generator=generator)
    with torch.no_grad():
        sae.decoder.copy_(nn.functional.normalize(directions, dim=1))
        sae.encoder.copy_(sae.decoder.T)
        sae.decoder_bias.copy_(geometric_median(vectors))
    sae.threshold.data.fill_(FIRST_THRESHOLD if settings.kind == "jumprelu" else 0.0)
    sae.threshold.requires_grad_(settings.kind == "jumprelu")
    return sae


def _loss(
    sae: SparseAutoencoder, vectors: Batch, settings: Settings, dead: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the loss on a batch of variance 1, and the activations."""
    scores = sae.scores(vectors)
    penalty = scores.new_zeros(())
    if settings.kind == "relu":
        active = torch.relu(scores)
        penalty = active.sum(1).mean()
    elif settings.kind == "topk":
        active = top_k(scores, settings.k)
    elif settings.kind == "batchtopk":
        active = batch_top_k(scores, settings.k)
    else:
        threshold = torch.relu(sae.threshold)
        active = jump(torch.relu(scores), threshold, KERNEL)
        fired = step(scores, threshold, KERNEL).sum(1).mean()
        penalty = (fired / settings.k - 1).square()
    left = vectors - sae.decode(active)
    loss = left.square().sum(1).mean() + settings.sparsity * penalty
    if bool(dead.any()):
        loss = loss + AUXILIARY * _auxiliary(sae, scores[:, dead], left.detach(), dead)
    return loss, active.detach()


def _auxiliary(sae: SparseAutoencoder, scores: Tensor, left: Batch, dead: Tensor) -> Tensor:
    """Return the share of what is left that the strongest silent features do not explain."""
    count = min(sae.size // 2 or 1, scores.shape[1])
    values, places = scores.topk(count, dim=1)
    guess = torch.zeros_like(scores).scatter(1, places, values) @ sae.decoder[dead]
    return (left - guess).square().sum() / left.square().sum().clamp_min(1e-12)


@torch.no_grad()
def _hold_norms(sae: SparseAutoencoder, optimizer: torch.optim.Optimizer) -> None:
    """Make a step that leaves the rows of the decoder at norm 1."""
    rows, gradient = sae.decoder, sae.decoder.grad
    assert gradient is not None
    gradient -= (gradient * rows).sum(1, keepdim=True) * rows
    optimizer.step()
    rows.copy_(nn.functional.normalize(rows, dim=1))

"""Training of sparse autoencoders on vectors that arrive batch by batch.

Vectors are scaled so that their variance is 1 in all, and the scale is taken into the weights at
the end. The loss is the share of variance that is not explained, plus what the kind asks for, plus
the auxiliary loss of Gao et al. (2406.04093, A.2) in which features that have long been silent
explain what is left. Rows of the decoder have norm 1, and no gradient along themselves. The rate is
high because training is short: at 1e-3 and 500 steps the penalty of ReLU has not yet emptied the
features (34 of 512 fire, as good as as many principal components), at 3e-3 it has (20, .93 of the
variance to .80), and the other kinds explain more, too; a penalty that rises over the first steps
changes neither. The thresholds of JumpReLU are trained as they are, not as logarithms, which Adam
would hardly move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
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
    """Settings of the training of an autoencoder.

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
    rate: Annotated[float, Between(0, 1)] = 3e-3
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
    training = Training.begin(sample, site, settings)
    while not training.complete:
        training.step(next(vectors))
        if report is not None:
            report(training.done, settings.steps)
    return training.result()


class Training:
    """An autoencoder in training, whose state can be kept between two steps and taken up."""

    def __init__(self, sae: SparseAutoencoder, scale: float, settings: Settings) -> None:
        self.sae, self.scale, self.settings, self.done = sae, scale, settings, 0
        self.optimizer = torch.optim.Adam(sae.parameters(), lr=settings.rate)
        self.silent = torch.zeros(settings.features)

    @classmethod
    def begin(cls, sample: Batch, site: Site, settings: Settings) -> Training:
        """Initialize scale and bias from a sample."""
        settings.check()
        generator = torch.Generator().manual_seed(settings.seed)
        scale = spread(sample)
        return cls(_start(sample / scale, site, settings, generator), scale, settings)

    @classmethod
    def resume(cls, state: Mapping[str, Tensor], site: Site, settings: Settings) -> Training:
        """Resume from a result of `state`."""
        settings.check()
        features, size = state["sae.decoder"].shape
        sae = SparseAutoencoder(settings.kind, size, features, site, k=settings.k)
        sae.load_state_dict({name: state[f"sae.{name}"] for name in sae.state_dict()})
        sae.threshold.requires_grad_(settings.kind == "jumprelu")
        training = cls(sae, float(state["scale"]), settings)
        training.done, training.silent = int(state["done"]), state["silent"].clone()
        moments: dict[int, dict[str, Tensor]] = {}
        for name in state:
            if name.startswith("adam."):
                _, index, part = name.split(".")
                moments.setdefault(int(index), {})[part] = state[name].clone()
        groups = training.optimizer.state_dict()["param_groups"]
        training.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        return training

    @property
    def complete(self) -> bool:
        """Whether all steps are done."""
        return self.done >= self.settings.steps

    def step(self, vectors: Batch) -> None:
        """Take a step of Adam on a batch."""
        settings, sae = self.settings, self.sae
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate * schedule((self.done + 1) / settings.steps)
        with torch.enable_grad():
            loss, active = _loss(sae, vectors / self.scale, settings, self.silent >= SILENT)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        _hold_norms(sae, self.optimizer)
        self.silent = torch.where((active > 0).any(0), 0, self.silent + 1)
        if settings.kind == "batchtopk":
            least = active[active > 0].min() if bool((active > 0).any()) else active.new_zeros(())
            follow = FOLLOW if self.done else 1.0
            sae.threshold.data.lerp_(least.expand_as(sae.threshold), follow)
        self.done += 1

    def state(self) -> dict[str, Tensor]:
        """Return weights, moments of Adam, steps done, silent features and scale, by name."""
        adam = self.optimizer.state_dict()["state"]
        return {
            "done": torch.tensor(self.done),
            "scale": torch.tensor(self.scale, dtype=torch.float64),
            "silent": self.silent,
            **{f"sae.{name}": part for name, part in self.sae.state_dict().items()},
            **{
                f"adam.{index}.{part}": value
                for index, parts in adam.items()
                for part, value in parts.items()
            },
        }

    def result(self) -> SparseAutoencoder:
        """Return the autoencoder, with the scale taken into its weights; training ends with it."""
        with torch.no_grad():
            for part in (self.sae.encoder_bias, self.sae.decoder_bias, self.sae.threshold):
                part.mul_(self.scale)
        return self.sae.requires_grad_(False)


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


def _start(
    vectors: Batch, site: Site, settings: Settings, generator: torch.Generator
) -> SparseAutoencoder:
    """Initialize with random directions, encoder and decoder tied, and the bias at the median."""
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
    values, indices = scores.topk(count, dim=1)
    guess = torch.zeros_like(scores).scatter(1, indices, values) @ sae.decoder[dead]
    return (left - guess).square().sum() / left.square().sum().clamp_min(1e-12)


@torch.no_grad()
def _hold_norms(sae: SparseAutoencoder, optimizer: torch.optim.Optimizer) -> None:
    """Take a step that keeps the rows of the decoder at norm 1."""
    rows, gradient = sae.decoder, sae.decoder.grad
    assert gradient is not None
    gradient -= (gradient * rows).sum(1, keepdim=True) * rows
    optimizer.step()
    rows.copy_(nn.functional.normalize(rows, dim=1))

"""Training on the head outputs of a model, streamed from its passes over texts."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analyses._runtime.cost import duration
from headscope.analyses._sparse_autoencoders.autoencoder import SparseAutoencoder
from headscope.analyses._sparse_autoencoders.checkpoint import Checkpoint, State, prefixed, under
from headscope.analyses._sparse_autoencoders.site import TOKENS, Site, cut, stream, vectors
from headscope.analyses._sparse_autoencoders.training import Report, Settings, Training, fit
from headscope.analyses._sparse_autoencoders.vector_buffer import VectorBuffer
from headscope.probes.capturing.memory_estimate import format_bytes

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

# Tokens of a piece of text, vectors held at once, and how often each of them is drawn.
CONTEXT, ROOM, USES = 256, 2**15, 4
# Steps that are timed.
TRIED = 4


@dataclass(frozen=True)
class Cost:
    """What a training takes: tokens that run through the first layers, steps, seconds, bytes.

    Of one that goes on after ``done`` steps, what is left; ``whole`` are the seconds of all steps.
    """

    site: Site
    texts: int
    tokens: int
    steps: int
    seconds: float
    memory: int
    done: int = 0
    whole: float = 0.0

    def __str__(self) -> str:
        """Say it in one line."""
        left = f"{self.steps - self.done} of " if self.done else ""
        return (
            f"sae train: {self.tokens} tokens through layers 0 to {self.site.layer}, of "
            f"{self.texts} in the texts; {left}{self.steps} steps; about {duration(self.seconds)}, "
            f"memory {format_bytes(self.memory)} beside the model"
        )


def train(
    model: Model,
    prompts: Sequence[Sequence[int]],
    site: Site,
    settings: Settings,
    *,
    context: int = CONTEXT,
    report: Report | None = None,
    checkpoint: Checkpoint | None = None,
) -> SparseAutoencoder:
    """Train an autoencoder on the head outputs of token ids, which run in pieces of ``context``.

    No more than `ROOM` vectors are held at a time. The same seed gives the same autoencoder,
    whether it was trained at once or goes on from a ``checkpoint``, which is kept while it trains.
    """
    site.check(model.geometry)
    pieces = cut(model, prompts, context)
    generator = torch.Generator().manual_seed(settings.seed)

    def chunks(first: int) -> Iterator[Float[Tensor, "example size"]]:
        order = torch.randperm(len(pieces), generator=generator).tolist()
        parts = stream(model, [pieces[at] for at in order], site, first)
        return (batch.flatten(0, 1) for _, batch in parts)

    state = checkpoint.read() if checkpoint is not None else None
    kept = None if state is None else under(state, "buffer.")
    buffer = VectorBuffer(chunks, ROOM, settings.batch, generator, USES, kept)
    if state is None:
        training = Training.begin(buffer.held, site, settings)
    else:
        training = Training.resume(under(state, "training."), site, settings)

    def kept_state() -> State:
        return prefixed(training.state(), "training.") | prefixed(buffer.state(), "buffer.")

    while not training.complete:
        training.step(next(buffer))
        if report is not None:
            report(training.done, settings.steps)
        if checkpoint is not None:
            checkpoint.keep(kept_state)
    sae = training.result()
    opening = bool(model.tokenizer is not None and model.encode(""))
    sae.about = {
        "model_name": model.name, "revision": model.revision, "context_size": context,
        "prepend_bos": opening, "training": {**settings.__dict__},
    }  # fmt: skip
    return sae


def estimate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    site: Site,
    settings: Settings,
    *,
    context: int = CONTEXT,
    done: int = 0,
) -> Cost:
    """Say what `train` takes, from one pass of the model and a few steps on this machine.

    After ``done`` steps, what it takes from there on.
    """
    site.check(model.geometry)
    pieces = cut(model, prompts, context)
    texts = sum(map(len, pieces))
    buffered = min(texts, ROOM)
    every = buffered + _renewed(texts, settings.steps, settings.batch)
    tokens = every - (buffered + _renewed(texts, done, settings.batch) if done else 0)
    longest = max(pieces, key=len)
    rows = max(1, min(TOKENS // len(longest), every // len(longest)))
    ids = torch.tensor([longest] * rows)
    vectors(model, ids[:1], site)
    began = time.perf_counter()
    batch = vectors(model, ids, site).flatten(0, 1)
    passed = time.perf_counter() - began
    batch = batch[torch.arange(settings.batch) % len(batch)]
    began = time.perf_counter()
    fit(iter([batch] * TRIED), batch, site, replace(settings, steps=TRIED))
    stepped = (time.perf_counter() - began) / TRIED
    numbers = 2 * buffered * batch.shape[1]  # the vectors, and those that come for half of them
    # Weights, their gradients and two moments; scores and activations of a batch, and theirs.
    numbers += 8 * settings.features * batch.shape[1] + 8 * settings.batch * settings.features
    left, whole = (
        passed * ran / ids.numel() + stepped * steps
        for ran, steps in ((tokens, settings.steps - done), (every, settings.steps))
    )
    return Cost(site, texts, tokens, settings.steps, left, 4 * numbers, done, whole)


def _renewed(texts: int, steps: int, batch: int) -> int:
    """Count the tokens that take the place of others in the buffer, in so many steps."""
    if texts < ROOM:
        return 0
    return math.ceil(max(steps * batch / (USES // 2) - ROOM, 0) / ROOM) * (ROOM // 2)

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
    """Expected cost of a training: tokens through the first layers, steps, seconds, bytes."""

    site: Site
    texts: int
    tokens: int
    steps: int
    seconds: float
    memory: int

    def __str__(self) -> str:
        """Format as one line."""
        return (
            f"sae train: {self.tokens} tokens through layers 0 to {self.site.layer}, of "
            f"{self.texts} in the texts; {self.steps} steps; about {duration(self.seconds)}, "
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
) -> Cost:
    """Estimate the cost of `train`, from one pass of the model and a few steps on this machine."""
    site.check(model.geometry)
    pieces = cut(model, prompts, context)
    texts = sum(map(len, pieces))
    buffered = min(texts, ROOM)
    tokens = buffered
    if texts >= ROOM:
        vectors_used = settings.steps * settings.batch / (USES // 2)
        tokens += math.ceil(max(vectors_used - ROOM, 0) / ROOM) * (ROOM // 2)
    longest = max(pieces, key=len)
    rows = max(1, min(TOKENS // len(longest), tokens // len(longest)))
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
    return Cost(
        site, texts, tokens, settings.steps,
        passed * tokens / ids.numel() + stepped * settings.steps, 4 * numbers,
    )  # fmt: skip

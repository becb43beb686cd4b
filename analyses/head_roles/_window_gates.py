"""Full and streaming attention mixed head by head: learned gates, and the cost of every window."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analyses._interventions.ablation import (
    NUMBERS,
    SWEEP_TOKENS,
    Batch,
    Measure,
    question_batches,
)
from headscope.analyses._stats.bootstrap import Array
from headscope.kernels.api import Request, WeightEdits
from headscope.probes.attention.forward import Reader, run, unembedding_at
from headscope.probes.attention.interface import AttentionCall
from headscope.probes.models.model import Model
from headscope.probes.prompts.prompt_batch import batches

# Tokens in one step of the gates.
STEP = 512


@dataclass
class Mixer(Reader):
    """Return ``share · full + (1 − share) · streaming``, one share a row and head.

    A streaming head sees the ``first`` first keys and the ``recent`` last ones (`Window`).
    """

    shares: Float[Tensor, "_ layer head"] = field(default_factory=lambda: torch.ones(1, 1, 1))
    first: int = 4
    recent: int = 16

    def __call__(self, call: AttentionCall) -> Tensor:
        """Compute both and mix."""
        share = self.shares[:, call.layer].to(call.query)[:, :, None, None]
        self.layers.append(call.layer)
        nothing = Request(stats=())
        full = call.attend(nothing)["z"]
        if not share.requires_grad and bool((share == 1).all()):
            return full
        heads = call.query.shape[1]
        narrow = WeightEdits(
            first=torch.full((heads,), self.first), recent=torch.full((heads,), self.recent)
        ).to(call.query.device)
        return share * full + (1 - share) * call.attend(nothing, narrow)["z"]


@dataclass(frozen=True)
class Training:
    """Settings of the training of gates.

    The loss is the squared error of the last hidden state at the questions, over the squared norm
    of what it is with full attention (DuoAttention has the bare squared error), plus ``weight``
    times the mean gate. Adam from 1, cut to 0 … 1.
    """

    steps: int
    rate: float
    weight: float
    first: int
    recent: int


def learn(
    model: Model,
    ids: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]],
    training: Training,
) -> tuple[Array, list[float]]:
    """Learn one gate a KV head: 1 keeps full attention, 0 leaves a streaming head.

    Every step takes the next batch of prompts of one length, and the hidden states at ``positions``
    of each prompt. Gates (layer, kv_head), NaN in layers without an attention map; and the loss at
    every step.

    Source: Xiao et al., DuoAttention (2410.10819).
    """
    group = model.heads // model.kv_heads
    gates = torch.ones(model.layers, model.kv_heads, device=model.device, requires_grad=True)
    optimizer = torch.optim.Adam([gates], lr=training.rate)
    attending = model.geometry.attending
    rounds = list(batches(ids, STEP))
    aims: dict[int, Tensor] = {}
    losses = []
    for number in range(training.steps):
        batch_number = number % len(rounds)
        rows = rounds[batch_number]
        tokens = torch.tensor([ids[row] for row in rows])
        pairs = [(index, at) for index, row in enumerate(rows) for at in positions[row]]
        batch, position = torch.tensor(pairs, device=model.device).T
        if batch_number not in aims:
            with torch.no_grad():
                whole = run(model, tokens, Reader(Request(stats=())), head=False)
            aims[batch_number] = whole[batch, position].float()
        with torch.enable_grad():
            shares = gates.repeat_interleave(group, dim=1)[None]
            mixer = Mixer(
                Request(stats=()), shares=shares, first=training.first, recent=training.recent
            )
            hidden = run(model, tokens, mixer, head=False)[batch, position].float()
            error = (hidden - aims[batch_number]).square().sum() / aims[batch_number].square().sum()
            loss = error + training.weight * gates[attending].mean()
            (slope,) = torch.autograd.grad(loss, gates)
        gates.grad = slope
        optimizer.step()
        with torch.no_grad():
            gates.clamp_(0, 1)
        losses.append(float(loss.detach()))
    result = gates.detach().double().cpu().numpy().copy()
    result[list(model.geometry.without)] = np.nan
    return result, losses


def window_cost(
    model: Model,
    ids: Sequence[Sequence[int]],
    question_positions: Sequence[Sequence[int]],
    measure: Measure,
    first: int,
    recent: int,
) -> Array:
    """Return what each head costs as a streaming head, all others full (prompt, layer, head).

    ``measure`` turns the logits at the ``question_positions`` positions into one loss a row.
    """
    count = model.layers * model.heads
    single = 1 - torch.eye(count).reshape(count, model.layers, model.heads)
    result = np.full((len(ids), count), np.nan)

    def scored(batch: Batch, shares: Tensor) -> Array:
        prompts, tokens, positions = batch
        times = len(shares)
        mixer = Mixer(
            Request(stats=()), shares=shares.repeat_interleave(len(prompts), dim=0),
            first=first, recent=recent,
        )  # fmt: skip
        repeated = positions.repeat(times, 1)
        with torch.no_grad(), unembedding_at(model, repeated) as finish:
            output: Tensor = finish(run(model, tokens.repeat(times, 1), mixer, head=True))
            values = measure(output, prompts * times, repeated.tolist())
        return np.asarray(values.double().cpu().numpy()).reshape(times, -1)

    for batch in question_batches(model, ids, question_positions, SWEEP_TOKENS):
        prompts, tokens, positions = batch
        clean = scored(batch, torch.ones(1, model.layers, model.heads))
        numbers = NUMBERS // (positions.numel() * model.vocabulary)
        together = max(1, min(SWEEP_TOKENS // tokens.numel(), numbers))
        for start in range(0, count, together):
            part = single[start : start + together]
            result[prompts, start : start + len(part)] = (scored(batch, part) - clean).T
    grid = result.reshape(-1, model.layers, model.heads)
    grid[:, list(model.geometry.without)] = np.nan
    return grid

"""Full and streaming attention mixed head by head: learned gates, and the cost of every window."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analyses._stats.bootstrap import Array
from headscope.kernels.api import Request, WeightEdits
from headscope.probes.attention.forward import Reader, run
from headscope.probes.attention.interface import AttentionCall
from headscope.probes.models.model import Model
from headscope.probes.prompts.prompt_batch import batches

TOKENS = 8192
# Tokens in one step of the gates.
STEP = 512


@dataclass
class Mixer(Reader):
    """Answer with ``share · full + (1 − share) · streaming``, one share a row and head.

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
    """How the gates are learned.

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
        pairs = [(place, at) for place, row in enumerate(rows) for at in positions[row]]
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
    measure: Callable[[Tensor, Sequence[int]], Tensor],
    first: int,
    recent: int,
) -> Array:
    """Return what each head costs as a streaming head, all others full (prompt, layer, head).

    ``measure`` turns logits and the prompts of their rows into one loss a row.
    """

    def scored(rows: Sequence[int], shares: Tensor) -> Array:
        mixer = Mixer(Request(stats=()), shares=shares, first=first, recent=recent)
        with torch.no_grad():
            output: Any = run(model, torch.tensor([ids[row] for row in rows]), mixer, head=True)
            return np.asarray(measure(output, rows).double().cpu().numpy())

    count = model.layers * model.heads
    single = 1 - torch.eye(count).reshape(count, model.layers, model.heads)
    result = np.full((len(ids), count), np.nan)
    for rows in batches(ids, TOKENS):
        clean = scored(rows, torch.ones(1, model.layers, model.heads))
        together = max(1, TOKENS // (len(rows) * len(ids[rows[0]])))
        for start in range(0, count, together):
            some = single[start : start + together]
            shares = some.repeat_interleave(len(rows), dim=0)
            values = scored(rows * len(some), shares)
            change = values.reshape(len(some), len(rows)) - clean
            result[rows, start : start + len(some)] = change.T
    grid = result.reshape(-1, model.layers, model.heads)
    grid[:, list(model.geometry.without)] = np.nan
    return grid

"""Blocks skipped one at a time: the change of the last hidden state and of the loss."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analyses._interventions.batched_edits import ablate_rows
from headscope.analyses._stats.bootstrap import Array
from headscope.kernels.api import Request
from headscope.kernels.errors import NotApplicable
from headscope.probes.attention.forward import Reader, run
from headscope.probes.attention.residual_stream import watching
from headscope.probes.models.model import Model

MOST = 2**31


def measure(model: Model, prompts: Sequence[Sequence[int]], predicting: bool) -> Array:
    """Run every prompt whole, without each block, and without the heads of each layer.

    Returned are five numbers (number, prompt, block): 1 − cos of a block's input and output; 1 −
    cos of the last stream with and without the block, and nats a token that skipping it adds; and
    these two again without the heads of the layer, NaN in layers without an attention map. Where
    the model predicts no next token there is no loss.
    """
    values = np.full((5, len(prompts), model.layers), np.nan)
    for row, ids in enumerate(prompts):
        if predicting and len(ids) * model.vocabulary > MOST:
            raise NotApplicable(
                f"causal_tokens: {len(ids)} tokens times {model.vocabulary} words are too many "
                f"logits for the loss; give at most {MOST // model.vocabulary}"
            )
        streams, clean = _pass(model, ids, predicting)
        for layer in range(model.layers):
            values[0, row, layer] = turn(streams[layer], streams[layer + 1])
            skipped, loss = _pass(model, ids, predicting, skip=layer)
            values[1:3, row, layer] = turn(streams[-1], skipped[-1]), loss - clean
            if layer in model.geometry.attending:
                chosen = torch.zeros(1, model.layers, model.heads, dtype=torch.bool)
                chosen[:, layer] = True
                ablated, loss = _pass(model, ids, predicting, edits=(ablate_rows(chosen),))
                values[3:, row, layer] = turn(streams[-1], ablated[-1]), loss - clean
    return values


def turn(first: Float[Tensor, "token residual"], second: Float[Tensor, "token residual"]) -> float:
    """Return 1 − cos of two streams, averaged over tokens.

    >>> import torch
    >>> turn(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    1.0
    """
    cosine = torch.nn.functional.cosine_similarity(first.double(), second.double(), dim=-1)
    return float((1 - cosine).mean().clamp(0, 2))


def _pass(
    model: Model,
    ids: Sequence[int],
    predicting: bool,
    skip: int | None = None,
    edits: Sequence[Any] = (),
) -> tuple[list[Tensor], float]:
    """Return the stream at every boundary and the loss; a skipped block passes its input on."""
    streams: dict[int, Tensor] = {}

    def take(boundary: int, stream: Tensor) -> Tensor | None:
        # The block is run, and its output is thrown away: the next one gets its input.
        replacement = streams[skip] if skip is not None and boundary == skip + 1 else None
        streams[boundary] = stream if replacement is None else replacement
        return replacement

    batch = torch.tensor([list(ids)])
    with torch.no_grad(), watching(model, take):
        output = run(model, batch, Reader(Request(stats=()), edits), head=predicting)
    states = [streams[boundary][0].detach() for boundary in sorted(streams)]
    if not predicting:
        return states, float("nan")
    targets = batch[0, 1:].to(output.device)
    return states, float(torch.nn.functional.cross_entropy(output[0, :-1].float(), targets))

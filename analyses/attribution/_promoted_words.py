"""Words that heads and the residual stream promote at one question."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analyses._measurements.readout import QuestionCache, Readout
from headscope.analyses._measurements.residual_writes import through
from headscope.analyses._measurements.token_pairs import largest


def coordinates(reads: Readout, cache: QuestionCache, count: int) -> dict[str, Any]:
    """Return the tokens of the largest logits of what heads write and of every stream.

    Through the last norm and without it. Of heads the norm is linear, so its scale moves no word;
    a stream goes through the norm by itself, with the biases (the logit lens). Heads that write
    nothing promote no word.
    """
    model = reads.model
    layers = list(reads.writes)
    heads = torch.cat([reads.writes_of(layer, cache)[0] for layer in layers])
    streams = torch.cat(cache.streams)
    named: dict[str, Any] = {}
    for name, vectors in (("", reads.norm.linear(heads)), ("_before_norm", heads)):
        grid = np.full((model.layers, model.heads), "", dtype=object)
        grid[layers] = np.reshape(promoted(reads, vectors, count), (len(layers), model.heads))
        named[f"promotes{name}"] = ("layer", "head"), grid.astype(str)
    normed = through(reads.last, model, streams)
    named["stream_promotes"] = "boundary", promoted(reads, normed, count, reads.shift)
    named["stream_promotes_before_norm"] = "boundary", promoted(reads, streams, count)
    return named


def promoted(
    reads: Readout, vectors: Float[Tensor, "vector residual"], count: int,
    bias: Float[Tensor, " vocab"] | None = None,
) -> list[str]:  # fmt: skip
    """Write the words of the largest logits of every vector, the largest first."""
    constant = torch.zeros(()) if bias is None else bias.float()
    pairs = largest(range(len(vectors)), vectors.float(), reads.table.T.float(), constant, count)
    words = {
        token: repr(reads.model.to_str_tokens([token])[0])
        for token in np.unique(pairs.others).tolist()
    }
    return [
        " ".join(words[token] for token in row) if vector.any() else ""
        for row, vector in zip(pairs.others.tolist(), vectors, strict=True)
    ]

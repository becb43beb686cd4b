"""Which tokens a head's weights map a token to: M = W_E' W_V W_O W_U, some rows, by chunks.

``W_E'`` is the token's embedding in the first layer, and behind it what the first block's MLP makes
of it. The layer's own norm is applied to it; the last norm is its gain alone, since its scale moves
no rank. Neither whole maps nor whole rows of more than `CELLS` numbers are held.

Source: Inferring Functionality of Attention Heads from their Parameters (MAPS, 2412.11965).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from headscope.analyses._measurements import token_pairs
from headscope.analyses._measurements.residual_writes import read_norm
from headscope.analyses._measurements.unembedding import final_norm
from headscope.kernels.errors import NotApplicable
from headscope.probes.attention import projections

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

CELLS = 2**24
"""Numbers of a head's rows that are held at once (64 MB)."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """Where targets stand in the rows of one head's map, 0 the first (target, source).

    ``above`` counts from the largest logit, ``below`` from the smallest; ``best`` is the token of
    the largest logit of each source and ``logit`` that logit.
    """

    above: NDArray[np.int64]
    below: NDArray[np.int64]
    best: NDArray[np.int64]
    logit: NDArray[np.float32]


@torch.no_grad()
def ranks(
    model: Model, sources: Sequence[int], targets: Int[Tensor, "target source"],
    report: token_pairs.Report | None = None,
) -> Iterator[tuple[int, int, Ranks]]:  # fmt: skip
    """Rank targets in the rows of their sources, head by head, as (layer, head, ranks)."""
    module: Any = model.module
    embedding = module.get_output_embeddings()
    if embedding is None:
        raise NotApplicable(f"model: {model.name} has no unembedding, so no vocabulary")
    table = embedding.weight.detach()
    norm = read_norm(final_norm(model), model, table.shape[1])
    found = projections.read(model, ("v", "o"))
    layers = model.geometry.attending
    for done, layer in enumerate(layers):
        if report is not None:
            report(done, len(layers))
        values = token_pairs.values(model, layer, sources, found)
        outwards = found.of(layer, "o")
        for head in range(model.heads):
            # The last norm is linear up to a factor of each row, which is positive.
            right = norm.linear(outwards[head]).float()
            left = values[head * model.kv_heads // model.heads]
            yield layer, head, _ranks(left.float(), right, table, targets)


def _ranks(
    left: Float[Tensor, "source size"], right: Float[Tensor, "size residual"],
    table: Float[Tensor, "vocab residual"], targets: Int[Tensor, "target source"],
) -> Ranks:  # fmt: skip
    count = len(left)
    wanted = table[targets.flatten()].float().cpu().view(*targets.shape, -1)
    at = ((left @ right) * wanted).sum(-1)
    above, below = (torch.zeros(targets.shape, dtype=torch.int64) for _ in range(2))
    best, logit = torch.zeros(count, dtype=torch.int64), torch.full((count,), -torch.inf)
    width = max(1, CELLS // (count + len(right)))
    for start in range(0, len(table), width):
        logits = left @ (right @ table[start : start + width].float().cpu().T)
        # What rounding makes differ is a tie, the target itself among them.
        slack = 1e-5 * logits.abs().amax(-1, keepdim=True)
        for row, value in enumerate(at):
            above[row] += (logits > value[:, None] + slack).sum(-1)
            below[row] += (logits < value[:, None] - slack).sum(-1)
        largest = logits.max(-1)
        better = largest.values > logit
        best = torch.where(better, largest.indices + start, best)
        logit = torch.where(better, largest.values, logit)
    return Ranks(above.numpy(), below.numpy(), best.numpy(), logit.numpy())

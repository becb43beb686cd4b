"""Causal and gradient numbers of input tokens: what the attention-based scores are held against."""

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from headscope.analyses._stats.bootstrap import Array
from headscope.probes.attention.forward import logits
from headscope.probes.models.model import Model


def replacement_effect(
    model: Model, ids: list[int], answer: int, substitutes: NDArray[np.int64]
) -> Array:
    """Return how far the log-probability of ``answer`` moves when a token is replaced (position,).

    The mean over the substitutes (position, substitute) of the absolute change at the last
    position, in nats.
    """
    size, count = substitutes.shape
    rows = np.tile(np.asarray(ids), (size * count, 1))
    positions = np.repeat(np.arange(size), count)
    rows[np.arange(len(rows)), positions] = substitutes.ravel()
    with torch.no_grad():
        intact, changed = (
            _log_probability(_last_logits(model, batch), answer) for batch in ([ids], rows.tolist())
        )
    moved = (changed - intact).abs().double().cpu().numpy()
    return np.asarray(moved.reshape(size, count).mean(1))


def input_gradient(model: Model, ids: list[int], answer: int) -> Array:
    """Return the size of the gradient of log p(answer) in each token's embedding (position,).

    The L2 norm over the embedding dimensions, at the last position's prediction.
    """
    tokens = _tensor(model, [ids])
    embedded = model.module.get_input_embeddings()(tokens).detach().requires_grad_(True)
    with torch.enable_grad():
        output = model.module(inputs_embeds=embedded, use_cache=False).logits
        (gradient,) = torch.autograd.grad(_log_probability(output[:, -1], answer).sum(), embedded)
    return np.asarray(gradient[0].double().norm(dim=-1).cpu().numpy())


def _last_logits(model: Model, rows: list[list[int]]) -> Float[Tensor, "row vocab"]:
    tokens = _tensor(model, rows)
    return logits(model, tokens, (), torch.full((len(tokens), 1), tokens.shape[1] - 1))[:, 0]


def _log_probability(logits: Float[Tensor, "row vocab"], answer: int) -> Float[Tensor, " row"]:
    return logits.float().log_softmax(-1)[:, answer]


def _tensor(model: Model, rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.long, device=model.device)

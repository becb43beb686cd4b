"""Causal and gradient numbers of input tokens: what the attention-based scores are held against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from headscope.probes.models.model import Model

Array = NDArray[np.float64]


def predicted(model: Model, ids: list[int]) -> int:
    """Return the token that the model predicts after ``ids``."""
    import torch

    from headscope.probes.attention.forward import logits

    model.check_predicts()
    with torch.no_grad():
        return int(logits(model, _tensor(model, [ids]))[0, -1].argmax())


def replacement_effect(
    model: Model, ids: list[int], answer: int, substitutes: NDArray[np.int64]
) -> Array:
    """Return how far the log-probability of ``answer`` moves when a token is replaced (position,).

    Parameters
    ----------
    model
        The model.
    ids
        Token ids; the prediction is read at the last position.
    answer
        Token id whose log-probability is followed.
    substitutes
        Token ids to put in the place of each token (position, substitute).

    Returns
    -------
    Mean over the substitutes of the absolute change, nats.
    """
    import torch

    from headscope.probes.attention.forward import logits

    size, count = substitutes.shape
    rows = np.tile(np.asarray(ids), (size * count, 1))
    where = np.repeat(np.arange(size), count)
    rows[np.arange(len(rows)), where] = substitutes.ravel()
    with torch.no_grad():
        intact = _log_probability(logits(model, _tensor(model, [ids])), answer)
        changed = _log_probability(logits(model, _tensor(model, rows.tolist())), answer)
    moved = (changed - intact).abs().double().cpu().numpy()
    return np.asarray(moved.reshape(size, count).mean(1))


def input_gradient(model: Model, ids: list[int], answer: int) -> Array:
    """Return the size of the gradient of log p(answer) in each token's embedding (position,).

    The L2 norm over the embedding dimensions, at the last position's prediction.
    """
    import torch

    tokens = _tensor(model, [ids])
    embedded = model.module.get_input_embeddings()(tokens).detach().requires_grad_(True)
    with torch.enable_grad():
        output = model.module(inputs_embeds=embedded, use_cache=False).logits
        (gradient,) = torch.autograd.grad(_log_probability(output, answer).sum(), embedded)
    return np.asarray(gradient[0].double().norm(dim=-1).cpu().numpy())


def _log_probability(logits: torch.Tensor, answer: int) -> torch.Tensor:
    return logits[:, -1].float().log_softmax(-1)[:, answer]


def _tensor(model: Model, rows: list[list[int]]) -> torch.Tensor:
    import torch

    return torch.tensor(rows, dtype=torch.long, device=model.device)

"""Products with attention matrices, panel by panel: no N×N matrix, at any length.

Rollout, flow routes and gradient-weighted relevance of a few output positions are a few rows, taken
through the matrices of all layers one after the other. Each step needs q and k of its layer, and
memory linear in the text.
"""

from jaxtyping import Float
from torch import Tensor

from headscope.kernels.attention_spec import PLAIN, AttentionSpec
from headscope.kernels.panels.panel import Panel
from headscope.kernels.panels.product import Gradient as Gradient
from headscope.kernels.panels.product import Product


def pull(
    x: Float[Tensor, "batch _ key vector"],
    q: Float[Tensor, "batch head query size"],
    k: Float[Tensor, "batch kv_head key size"],
    spec: AttentionSpec = PLAIN,
    *,
    heads: Float[Tensor, " head"] | None = None,
    gradient: Gradient | None = None,
) -> Float[Tensor, "batch _ query vector"]:
    """Multiply attention matrices by vectors over the keys, A x: queries average what keys hold.

    A is the weights as ``attend`` has them; a gate on ``z`` is no part of it.

    Parameters
    ----------
    x
        Vectors over the keys, any number at once; one head is for all heads alike. What padding
        holds does not matter.
    q, k, spec
        As in ``attend``.
    heads
        Factor of each head in the sum over heads that is returned, 1/head for their mean; None
        keeps the heads apart.
    gradient
        Multiplies each weight by its gradient; None leaves the weights as they are.

    Returns
    -------
    A x in float32, in the units of x, times those of L with a gradient; one head if ``heads`` is
    given. 0 at queries that are padding or see no key.

    References
    ----------
    Quantifying Attention Flow in Transformers (Abnar and Zuidema 2020). Information Flow Routes
    (Ferrando and Voita 2024).

    Examples
    --------
    >>> import torch
    >>> q = torch.zeros(1, 1, 3, 4)
    >>> pull(torch.tensor([3.0, 6.0, 9.0]).view(1, 1, 3, 1), q, q).flatten()
    tensor([3.0000, 4.5000, 6.0000])
    """
    call = Product.of(q, k, spec, heads, gradient)
    x = call.take("x", x, "key", call.panels.spec.key_mask)

    def step(weights: Tensor, panel: Panel, x: Tensor) -> tuple[slice, Tensor]:
        return panel.queries, weights @ x[:, :, panel.keys]

    return call.run(step, x, q.shape[2])


def push(
    r: Float[Tensor, "batch _ query vector"],
    q: Float[Tensor, "batch head query size"],
    k: Float[Tensor, "batch kv_head key size"],
    spec: AttentionSpec = PLAIN,
    *,
    heads: Float[Tensor, " head"] | None = None,
    gradient: Gradient | None = None,
) -> Float[Tensor, "batch _ key vector"]:
    """Multiply vectors over the queries by attention matrices, rᵀ A: the relevance of each key.

    The step of rollout and relevance from the output of a layer to its input. Panels of queries
    that hold nothing are not computed.

    Parameters
    ----------
    r
        Vectors over the queries, any number at once; one head is for all heads alike. What padding
        holds does not matter.
    q, k, spec, heads, gradient
        As in ``pull``.

    Returns
    -------
    rᵀ A in float32, in the units of r, times those of L with a gradient; one head if ``heads`` is
    given. 0 at padding.

    References
    ----------
    As ``pull``; Generic Attention-model Explainability (Chefer et al. 2021) for the gradient.

    Examples
    --------
    >>> import torch
    >>> q = torch.zeros(1, 1, 3, 4)
    >>> push(torch.tensor([0.0, 6.0, 9.0]).view(1, 1, 3, 1), q, q).flatten()
    tensor([6., 6., 3.])
    """
    call = Product.of(q, k, spec, heads, gradient)
    valid_queries = call.panels.visibility.valid_queries
    r = call.take("r", r, "query", None if bool(valid_queries.all()) else valid_queries)
    call = call.only((r != 0).any(dim=3).flatten(0, 1).any(dim=0))

    def step(weights: Tensor, panel: Panel, r: Tensor) -> tuple[slice, Tensor]:
        return panel.keys, weights.mT @ r[:, :, panel.queries]

    return call.run(step, r, k.shape[2])

"""Rollout and max-flow through the layers of attention maps, and the maps that they are made of."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor

from headscope.analyses._stats.bootstrap import Array
from headscope.kernels.api import AttentionSpec, pull, push

FUSIONS = ("mean", "max", "min")
UNIT = 10**9
"""Parts that a capacity of 1 has: max-flow counts in whole numbers of 32 bits."""
# What is left of a row without its first key, below which it attends to nothing else.
NOTHING = 1e-6


def mix(maps: Array, fusion: str = "mean", *, residual: bool = True, discard: float = 0.0) -> Array:
    """Join the heads, mix in the residual stream, and make rows sum to one.

    From (layer, head, query, key) to (layer, query, key). By default ``Â = rownorm(mean_h A + I)``
    of Abnar & Zuidema, Quantifying Attention Flow in Transformers (2005.00928). ``fusion`` "max" or
    "min" over heads and ``discard``, the share of the smallest entries of each layer's map that
    count as 0, are those of rollout for vision transformers (jacobgil/vit-explain). Without
    ``residual`` the maps alone are multiplied; a row that holds nothing then stays where it is.
    """
    joined = {"mean": maps.mean(1), "max": maps.max(1), "min": maps.min(1)}[fusion]
    if discard:
        seen = np.tril(np.ones(joined.shape[-2:], dtype=bool)) | (joined > 0).any(0)
        for each in joined:
            each[each < np.quantile(each[seen], discard)] = 0.0
    mixed = joined + np.eye(maps.shape[-1]) if residual else joined
    sums = mixed.sum(-1, keepdims=True)
    stay = np.broadcast_to(np.eye(maps.shape[-1]), mixed.shape)
    return np.where(sums > 0, mixed / np.where(sums > 0, sums, 1.0), stay)


def without_first(maps: Array) -> Array:
    """Average the heads and drop the first key, which sinks fill; rows sum to one again.

    From (layer, head, query, key) to (layer, 1, query, key). The first query keeps its row, and one
    that attends to nothing else keeps what it holds.
    """
    joined = maps.mean(1, keepdims=True)
    joined[..., 1:, 0] = 0.0
    sums = joined.sum(-1, keepdims=True)
    stay = np.broadcast_to(np.eye(maps.shape[-1]), joined.shape)
    return np.where(sums > NOTHING, joined / np.maximum(sums, NOTHING), stay)


def rollout(mixed: Array) -> Array:
    """Multiply the mixed maps: ``R_1 = Â_1``, ``R_l = Â_l R_{l−1}``."""
    total = mixed[0]
    for layer in mixed[1:]:
        total = layer @ total
    return np.asarray(total)


def flow(mixed: Array, queries: Sequence[int] | None = None) -> Array:
    """Return the maximum flow from each output position to each input position, rows normalised.

    The network has a node per layer boundary and position; the edge from (l, i) to (l − 1, j) has
    the capacity ``Â_l[i, j]``. One max-flow problem per pair of positions, by Dinic's algorithm of
    scipy on capacities that are rounded down to one part in 10⁹.

    Output positions are all, unless ``queries`` names some.

    Source: Abnar & Zuidema (2005.00928).
    """
    layers, size = mixed.shape[:2]
    layer, query, key = np.nonzero(mixed > 0)
    capacity = np.floor(mixed[layer, query, key] * UNIT).astype(np.int32)
    nodes = (layers + 1) * size
    ends = ((layer + 1) * size + query, layer * size + key)
    network = csr_matrix((capacity, ends), shape=(nodes, nodes))
    wanted = range(size) if queries is None else queries
    values = np.array(
        [
            [maximum_flow(network, layers * size + query, key).flow_value for key in range(size)]
            for query in wanted
        ],
        dtype=float,
    )
    return np.asarray(values / values.sum(-1, keepdims=True))


def step(
    rows: Float[Tensor, "1 1 query row"],
    q: Float[Tensor, "1 head query size"],
    k: Float[Tensor, "1 kv_head key size"],
    spec: AttentionSpec,
    *,
    first: bool = True,
) -> Float[Tensor, "1 1 key row"]:
    """Multiply rows by one layer's Â, the mean over heads with the residual stream, unseen whole.

    Without ``first`` the first key is dropped, as `without_first` does.
    """
    heads, size = q.shape[1], k.shape[2]
    mean = torch.full((heads,), 1 / heads)
    if first:
        sums = torch.ones(1)
        if spec.sinks is not None:
            sums = pull(torch.ones(1, 1, size, 1), q, k, spec, heads=mean)
        rows = rows / (1 + sums)
        return rows + push(rows, q, k, spec, heads=mean)
    ends = torch.ones(1, 1, size, 2)
    ends[0, 0, 1:, 1] = 0.0
    whole, sunk = torch.split(pull(ends, q, k, spec, heads=mean), 1, dim=-1)
    left = whole - sunk
    left[0, 0, 0] = whole[0, 0, 0]
    stays = left <= NOTHING
    given = torch.where(stays, 0.0, rows / 2 / left.clamp_min(NOTHING))
    moved = push(given, q, k, spec, heads=mean)
    # Of what the first token receives, only what it has from itself arrives.
    moved[0, 0, 0] = given[0, 0, 0] * sunk[0, 0, 0]
    return rows / 2 + torch.where(stays, rows / 2, 0.0) + moved


def mean_map(
    q: Float[Tensor, "1 head query size"],
    k: Float[Tensor, "1 kv_head key size"],
    spec: AttentionSpec,
) -> Array:
    """Return the mean over heads of a layer's weights (query, key), of a short text."""
    size = k.shape[2]
    mean = torch.full((q.shape[1],), 1 / q.shape[1])
    every = torch.eye(size)[None, None]
    return np.asarray(pull(every, q, k, spec, heads=mean)[0, 0].double().cpu().numpy())

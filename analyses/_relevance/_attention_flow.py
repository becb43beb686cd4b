"""Rollout and max-flow through the layers of attention maps, and the maps that they are made of."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor

from headscope.analyses._relevance._rows import weights_of
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses._stats.quantile import quantile
from headscope.kernels.api import AttentionSpec, pull, push

FUSIONS = ("mean", "max", "min")
UNIT = 10**9
"""Parts that a capacity of 1 has: max-flow counts in whole numbers of 32 bits."""
# What is left of a row without its first key, below which it attends to nothing else.
NOTHING = 1e-6
# Weights of heads that are held at once.
NUMBERS = 2**22


def mix(
    maps: Array, fusion: str = "mean", *, residual: bool = True, discard: float = 0.0,
    first: bool = True,
) -> Array:  # fmt: skip
    """Join the heads, mix in the residual stream, and make rows sum to one.

    From (layer, head, query, key) to (layer, query, key). By default ``Â = rownorm(mean_h A + I)``
    of Abnar & Zuidema, Quantifying Attention Flow in Transformers (2005.00928). ``fusion`` "max" or
    "min" over heads and ``discard``, the share of the smallest weights of each layer's joined map
    that count as 0, are those of rollout for vision transformers (jacobgil/vit-explain). Without
    ``residual`` the maps alone are multiplied; a row that holds nothing then stays where it is.
    Without ``first`` the first key, which sinks fill, is dropped from the joined maps.
    """
    positions, mixed = np.arange(maps.shape[-1]), []
    for heads in maps:
        joined = join(heads, positions, fusion, first=first)
        cut = float(np.quantile(joined[joined > 0], discard)) if discard else 0.0
        mixed.append(_stochastic(joined, positions, residual, cut))
    return np.stack(mixed)


def join(
    heads: Float[Array, "head row key"], positions: Int[NDArray[Any], " row"], fusion: str = "mean",
    *, first: bool = True,
) -> Float[Array, "row key"]:  # fmt: skip
    """Join the heads of some rows of a map, those of the queries at ``positions``.

    Without ``first`` the first key is dropped and rows sum to one again; the first query keeps its
    row, and one that attends to nothing else keeps what it holds.
    """
    joins: dict[str, Callable[..., Any]] = {"mean": np.mean, "max": np.max, "min": np.min}
    joined = np.asarray(joins[fusion](heads, axis=0))
    if first:
        return joined
    joined[positions > 0, 0] = 0.0
    return np.where(*_divided(joined, positions, NOTHING))


def _stochastic(joined: Array, positions: NDArray[Any], residual: bool, cut: float) -> Array:
    """Count weights below the cut as 0, add the residual stream, and make rows sum to one."""
    mixed = np.where(joined < cut, 0.0, joined)
    if residual:
        mixed[np.arange(len(positions)), positions] += 1.0
    return np.where(*_divided(mixed, positions, 0.0))


def _divided(rows: Array, positions: NDArray[Any], least: float) -> tuple[Array, Array, Array]:
    """Return which rows hold more than ``least``, these divided by their sums, and the identity."""
    sums = rows.sum(-1, keepdims=True)
    stay = np.zeros_like(rows)
    stay[np.arange(len(positions)), positions] = 1.0
    return sums > least, rows / np.where(sums > least, sums, 1.0), stay


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
    scipy on capacities that are rounded down to whole parts of 10⁻⁹. A flow is then too small by
    less than 10⁻⁹ for every edge of its smallest cut, which has at most ``size²`` edges.

    Output positions are all, unless ``queries`` names some.

    Source: Abnar & Zuidema (2005.00928).
    """
    values = largest_flows(mixed, range(mixed.shape[1]) if queries is None else queries)
    return np.asarray(values / values.sum(-1, keepdims=True, dtype=float))


def largest_flows(mixed: Array, queries: Sequence[int]) -> NDArray[np.int64]:
    """Return the maximum flow from output positions to each input position, in parts of `UNIT`."""
    layers, size = mixed.shape[:2]
    layer, query, key = np.nonzero(mixed > 0)
    capacity = np.floor(mixed[layer, query, key] * UNIT).astype(np.int32)
    nodes = (layers + 1) * size
    ends = ((layer + 1) * size + query, layer * size + key)
    network = csr_matrix((capacity, ends), shape=(nodes, nodes))
    return np.array(
        [
            [maximum_flow(network, layers * size + query, key).flow_value for key in range(size)]
            for query in queries
        ]
    )


def step(
    rows: Float[Tensor, "1 1 query row"],
    q: Float[Tensor, "1 head query size"],
    k: Float[Tensor, "1 kv_head key size"],
    spec: AttentionSpec,
    *,
    fusion: str = "mean",
    residual: bool = True,
    discard: float = 0.0,
    first: bool = True,
) -> Float[Tensor, "1 1 key row"]:
    """Multiply rows by one layer's Â of `mix`, unseen whole."""
    if fusion != "mean" or not residual or discard:
        return _step_by_rows(rows, q, k, spec, fusion, residual, discard, first)
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
    share_left = whole - sunk
    share_left[0, 0, 0] = whole[0, 0, 0]
    stays = share_left <= NOTHING
    passed = torch.where(stays, 0.0, rows / 2 / share_left.clamp_min(NOTHING))
    moved = push(passed, q, k, spec, heads=mean)
    # Of what the first token receives, only what it has from itself arrives.
    moved[0, 0, 0] = passed[0, 0, 0] * sunk[0, 0, 0]
    return rows / 2 + torch.where(stays, rows / 2, 0.0) + moved


def _step_by_rows(
    rows: Tensor, q: Tensor, k: Tensor, spec: AttentionSpec,
    fusion: str, residual: bool, discard: float, first: bool,
) -> Tensor:  # fmt: skip
    """Multiply rows by a map whose heads do not add up: some of its rows at once."""
    at_once = max(1, NUMBERS // (q.shape[1] * k.shape[2]))

    def joined(queries: Tensor) -> Iterator[tuple[Tensor, Array]]:
        for part in torch.split(queries, at_once):
            weights = weights_of(q, k, spec, part).float().cpu().numpy()
            yield part, join(weights, part.numpy(), fusion, first=first)

    def positive() -> Iterator[Any]:
        return (map_[map_ > 0] for _, map_ in joined(torch.arange(q.shape[2])))

    cut = quantile(positive, discard) if discard else 0.0
    result = torch.zeros(k.shape[2], rows.shape[-1], dtype=torch.float64)
    for part, map_ in joined((rows[0, 0] != 0).any(-1).nonzero()[:, 0].cpu()):
        mixed = torch.from_numpy(_stochastic(map_, part.numpy(), residual, cut))
        result += mixed.double().T @ rows[0, 0, part].double().cpu()
    return result[None, None].to(rows)


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

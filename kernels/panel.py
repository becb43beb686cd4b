"""A row panel: some queries of some heads against every key that they see."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.kernels.request import NO_KEY, Request
from headscope.kernels.visibility import MASKED, Visibility

COMB = 16
"""Teeth of a comb: equally spaced columns of a row whose largest is taken at once."""


@dataclass(eq=False)
class Panel:
    """What a statistic reads: exact attention weights of a few queries, all their keys at once.

    A row is complete, so every formula is the textbook one; nothing is rescaled afterwards. The
    tensors are reused for the next panel: a statistic returns new tensors or views, keeps none, and
    writes to ``scratch`` only.

    Parameters
    ----------
    logits
        Finished scores, hidden keys at -1e30; rows of padding are arbitrary.
    peak
        Largest logit of each row.
    weights
        Weights of the keys; rows without a visible key are zero.
    scratch
        Memory of the same shape for intermediate results.
    values
        Values of the panel's keys, one for each KV head.
    queries, keys
        Which queries and keys these are; ``queries`` is whole tiles or a part of one tile, and
        ``keys`` starts at a tile.
    targets
        Target keys of these queries, -1 for none; None where the request has none.
    spans
        Span of each of these keys, -1 for none; None where the request has none.
    dead
        Queries that are padding or see no key; None where there is none.
    sinks
        Logits of the learned sinks, an outcome besides the keys; None where there is none.
    visibility
        Which keys each query may see, for the sequences of this panel.
    request
        Parameters of the statistics.
    """

    logits: Float[Tensor, "batch head query key"]
    peak: Float[Tensor, "batch head query"]
    weights: Float[Tensor, "batch head query key"]
    scratch: Float[Tensor, "batch head query key"]
    values: Float[Tensor, "batch_kv_head key size"]
    queries: slice
    keys: slice
    targets: Int[Tensor, "batch target query occurrence"] | None
    spans: Int[Tensor, "batch key"] | None
    dead: Bool[Tensor, "batch head query"] | None
    sinks: Float[Tensor, "head 1"] | None
    visibility: Visibility
    request: Request

    def drain(self) -> None:
        """Give the learned sinks their share of weights that sum to 1 over the keys."""
        if self.sinks is not None:
            keys = -self.weights.amax(dim=-1).log()
            self.surplus = torch.logaddexp(keys, self.sinks - self.peak)
            self.weights.mul_(torch.exp(keys - self.surplus)[..., None])

    @cached_property
    def surplus(self) -> Float[Tensor, "batch head query"]:
        """What the normaliser has above the largest logit, lse - peak: 0 or more over keys only."""
        return -self.top.log()

    @property
    def lse(self) -> Float[Tensor, "batch head query"]:
        """Logarithm of the sum of all outcomes' exponentials: weight = exp(logit - lse)."""
        return self.peak + self.surplus

    @cached_property
    def sunk(self) -> Float[Tensor, "batch head query"]:
        """Share of the learned sinks."""
        if self.sinks is None:
            return torch.zeros_like(self.peak)
        return torch.exp(self.sinks - self.peak - self.surplus)

    @cached_property
    def top(self) -> Float[Tensor, "batch head query"]:
        """Largest weight of each row."""
        return self.weights.amax(dim=-1)

    @cached_property
    def tile_sums(self) -> Float[Tensor, "batch head query_tile key"]:
        """Weights summed over the queries of each tile."""
        return self._tiled(torch.sum)

    @cached_property
    def tile_peaks(self) -> Float[Tensor, "batch head query_tile key"]:
        """Largest weight among the queries of each tile."""
        return self._tiled(torch.amax)

    def _tiled(self, reduce: Callable[..., Tensor]) -> Float[Tensor, "batch head query_tile key"]:
        """Reduce the weights over the queries of each tile; the last tile may be a short one."""
        tile = self.request.tile
        whole = self.weights.shape[2] // tile * tile
        parts = []
        if whole:
            parts.append(reduce(torch.unflatten(self.weights[:, :, :whole], 2, (-1, tile)), dim=3))
        if whole < self.weights.shape[2]:
            parts.append(reduce(self.weights[:, :, whole:], dim=2, keepdim=True))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    @cached_property
    def leaders(self) -> Int[Tensor, "batch head query rank"]:
        """Columns of the request's ``k`` largest weights of each row, -1 where it sees fewer."""
        keys, count = self.logits.shape[-1], self.request.k
        # The k largest lie in the k combs of the largest peaks, or in the columns after the combs.
        wide = keys // COMB
        if wide > count:
            combs = torch.unflatten(self.logits[..., : COMB * wide], -1, (COMB, wide))
            best = combs.amax(dim=-2).topk(count, dim=-1, sorted=False).indices
            teeth = wide * torch.arange(COMB, device=best.device)
            candidates = (best[..., None] + teeth).flatten(-2)
            if COMB * wide < keys:
                rest = torch.arange(COMB * wide, keys, device=best.device)
                rest = rest.expand(*candidates.shape[:-1], -1)
                candidates = torch.cat((candidates, rest), dim=-1)
            values, place = self.logits.gather(3, candidates).topk(count, dim=-1)
            columns = candidates.gather(3, place)
        else:
            values, columns = self.logits.topk(min(count, keys), dim=-1)
        columns = columns.masked_fill(values <= MASKED / 2, -1)
        return torch.nn.functional.pad(columns, (0, max(count - keys, 0)), value=-1)

    @cached_property
    def before(self) -> Float[Tensor, "batch head query key+1"]:
        """Mass on the keys before each key of the panel, and in the end on all."""
        batch, heads, queries, keys = self.weights.shape
        sums = self.weights.new_empty(batch, heads, queries, keys + 1)
        sums[..., 0] = 0.0
        torch.cumsum(self.weights, dim=-1, out=sums[..., 1:])
        return sums

    def within(
        self, reach: Int[Tensor, "#batch #head #query choice"]
    ) -> Float[Tensor, "batch head query choice"]:
        """Add the weights of the keys at a distance below ``reach``, to either side."""
        batch, heads, queries, keys = self.weights.shape
        position = self.visibility.positions[self.queries, None] - self.keys.start
        shape = (batch, heads, queries, -1)
        # In causal order nothing lies ahead, and the mass so far is that of the whole row.
        stop = (position + reach).clamp(0, keys).expand(shape)
        start = (position - reach + 1).clamp(0, keys).expand(shape)
        return self.before.gather(3, stop) - self.before.gather(3, start)

    @cached_property
    def distances(self) -> Float[Tensor, "query key"]:
        """Distance between query and key, in tokens, clipped at the request's ``clip``."""
        positions = self.visibility.positions[self.queries]
        key = torch.arange(self.keys.start, self.keys.stop, device=positions.device)
        distances = (positions[:, None] - key).abs()
        clip = self.request.clip
        return (distances if clip is None else distances.clamp_max(clip)).float()

    @cached_property
    def mean_distance(self) -> Float[Tensor, "batch head query"]:
        """Weighted mean of the clipped distances of each row."""
        return torch.mul(self.weights, self.distances, out=self.scratch).sum(dim=-1)

    def mix(self) -> Float[Tensor, "batch head query size"]:
        """Average the values by the weights."""
        batch, heads, queries, keys = self.weights.shape
        # Query heads that share a KV head are rows of one product: K and V are never expanded.
        rows = self.weights.view(len(self.values), -1, keys)
        return torch.bmm(rows, self.values).view(batch, heads, queries, -1)

    def at(
        self, keys: Int[Tensor, "#batch #query choice"]
    ) -> Float[Tensor, "batch head query choice"]:
        """Gather the weights at some keys of every query: 0 at -1 and at keys that it cannot see.

        Parameters
        ----------
        keys
            Index of each key in the whole sequence, -1 for none.
        """
        batch, heads, queries, _ = self.weights.shape
        inside = (keys != NO_KEY) & (keys >= self.keys.start) & (keys < self.keys.stop)
        index = torch.where(inside, keys - self.keys.start, 0)[:, None]
        gathered = self.weights.gather(3, index.expand(batch, heads, queries, -1))
        return gathered.masked_fill_(~inside[:, None], 0.0)

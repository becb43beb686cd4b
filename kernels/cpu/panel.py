"""A row panel: some queries of some heads against every key that they see."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.kernels.cpu.leaders import lead
from headscope.kernels.request import NO_KEY, Request
from headscope.kernels.visibility import MASKED, Visibility

BLUNT = 12.0
"""Largest logit of a row up to which an entropy taken as a difference is right to 1e-5."""


@dataclass(eq=False)
class Panel:
    """What a statistic reads: exact attention weights of a few queries, all their keys at once.

    A row is complete, so every formula is the textbook one; nothing is rescaled afterwards. The
    tensors are reused for the next panel: a statistic returns new tensors or views, keeps none, and
    writes to ``scratch`` only.

    Parameters
    ----------
    score
        Computes the logits, where something asks for them.
    peak
        Largest logit of each row.
    weights
        Weights of the keys; rows without a visible key are zero. Without data where the sweep kept
        none, so that reading them fails.
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
    known
        Properties that were computed together with the weights, by name.
    """

    score: Callable[[], Float[Tensor, "batch head query key"]]
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
    known: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A cached property that is there already is not computed again.
        vars(self).update(self.known)

    @cached_property
    def extents(self) -> dict[str, tuple[int, int]]:
        """Start and length of the panel along the dims that panels divide."""
        tile = self.request.tile
        covered = {
            "query": (self.queries.start, self.queries.stop),
            "key": (self.keys.start, self.keys.stop),
            "query_tile": (self.queries.start // tile, -(-self.queries.stop // tile)),
            "key_tile": (self.keys.start // tile, -(-self.keys.stop // tile)),
        }
        return {dim: (start, stop - start) for dim, (start, stop) in covered.items()}

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
    def logits(self) -> Float[Tensor, "batch head query key"]:
        """Finished scores, hidden keys at -1e30; rows of padding are arbitrary."""
        return self.score()

    @cached_property
    def entropy(self) -> Float[Tensor, "batch head query"]:
        """Entropy of the outcomes."""
        if self.blunt and self.sinks is None:
            mean = torch.mul(self.logits, self.weights, out=self.scratch).sum(dim=-1)
            return (self.lse - mean).clamp_min_(0.0)
        # Two terms that are never negative: nothing cancels, at the price of another pass.
        gap = torch.sub(self.peak[..., None], self.logits, out=self.scratch)
        keys = gap.mul_(self.weights).sum(dim=-1) + self.surplus
        return keys if self.sinks is None else keys + self.sunk * (self.peak - self.sinks)

    @cached_property
    def blunt(self) -> bool:
        """Whether all logits are so small that their differences lose nothing that counts."""
        return bool(((self.peak.abs() < BLUNT) | (self.peak <= MASKED / 2)).all())

    @cached_property
    def top(self) -> Float[Tensor, "batch head query"]:
        """Largest weight of each row."""
        return self.weights.amax(dim=-1)

    @cached_property
    def sums(self) -> Float[Tensor, "batch head key"]:
        """Weights summed over the queries."""
        return self._sums.sum(dim=2)

    @cached_property
    def peaks(self) -> Float[Tensor, "batch head key"]:
        """Largest weight among the queries."""
        return self._peaks.amax(dim=2)

    @cached_property
    def tile_sums(self) -> Float[Tensor, "batch head query_tile key_tile"]:
        """Weights summed over the queries and keys of each tile."""
        return self._across(self._sums).sum(dim=-1)

    @cached_property
    def tile_peaks(self) -> Float[Tensor, "batch head query_tile key_tile"]:
        """Largest weight among the queries and keys of each tile."""
        return self._across(self._peaks).amax(dim=-1)

    @cached_property
    def _sums(self) -> Float[Tensor, "batch head query_tile key"]:
        return self._down(torch.sum)

    @cached_property
    def _peaks(self) -> Float[Tensor, "batch head query_tile key"]:
        return self._down(torch.amax)

    def _down(self, reduce: Callable[..., Tensor]) -> Float[Tensor, "batch head query_tile key"]:
        """Reduce the weights over the queries of each tile; the last tile may be a short one."""
        tile = self.request.tile
        whole = self.weights.shape[2] // tile * tile
        parts = []
        if whole:
            parts.append(reduce(torch.unflatten(self.weights[:, :, :whole], 2, (-1, tile)), dim=3))
        if whole < self.weights.shape[2]:
            parts.append(reduce(self.weights[:, :, whole:], dim=2, keepdim=True))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def _across(self, columns: Tensor) -> Float[Tensor, "batch head query_tile key_tile tile"]:
        """Cut the columns into tiles; the last tile is filled up with zeros."""
        tile = self.request.tile
        short = -columns.shape[-1] % tile
        padded = torch.nn.functional.pad(columns, (0, short)) if short else columns
        return torch.unflatten(padded, -1, (-1, tile))

    @cached_property
    def leaders(self) -> Int[Tensor, "batch head query rank"]:
        """Columns of the request's ``k`` largest weights of each row, -1 where it sees fewer."""
        return lead(self.logits, self.request.k)

    @cached_property
    def leader_weights(self) -> Float[Tensor, "batch head query rank"]:
        """Weights at the leaders, NaN where a row sees fewer."""
        weights = self.weights.gather(3, self.leaders.clamp_min(0))
        return weights.masked_fill(self.leaders < 0, float("nan"))

    @cached_property
    def first_sum(self) -> Float[Tensor, "batch head query"]:
        """Mass on the request's ``first`` real keys of each query's sequence."""
        if self.visibility.key_mask is None and self.visibility.lengths is None:
            width = max(self.request.first - self.keys.start, 0)
            return self.weights[..., :width].sum(dim=-1)
        keys = self.visibility.first_keys(self.request.first)
        return self.at(keys if keys.shape[1] == 1 else keys[:, self.queries]).sum(dim=-1)

    @cached_property
    def before(self) -> Float[Tensor, "batch head query boundary"]:
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

    @cached_property
    def distance_variance(self) -> Float[Tensor, "batch head query"]:
        """Average of the squares around the mean: E[d²] - E[d]² would cancel in float32."""
        off = torch.sub(self.distances, self.mean_distance[..., None], out=self.scratch)
        return off.square_().mul_(self.weights).sum(dim=-1)

    @cached_property
    def distance_hist(self) -> Float[Tensor, "batch head query bin"]:
        """Mass in every bin of distance."""
        starts = distance_bins(max(self.visibility.queries, self.visibility.keys))
        first = self.queries.start + self.visibility.shift - self.keys.start
        last = first + self.weights.shape[2] - 1
        # Bins that lie inside the panel for every row, and at most two that do not.
        inside = sum(2 * start <= first + 1 for start in starts)
        causal = self.visibility.causal and last < self.keys.stop - self.keys.start
        if causal and 1 < inside < len(starts) and last < 4 * starts[inside]:
            return self._sheared(starts, inside, first)
        ends = torch.tensor([*starts[1:], 2 * starts[-1] + 1], device=self.weights.device)
        place = self.visibility.positions[self.queries, None] - self.keys.start
        keys = self.weights.shape[-1]
        sums = torch.cumsum(self.weights, dim=-1, out=self.scratch)

        def before(key: Tensor) -> Tensor:
            last = (key.clamp(0, keys) - 1).expand(*self.weights.shape[:2], -1, -1)
            return sums.gather(3, last.clamp_min(0)).masked_fill_(last < 0, 0.0)

        inner = before(place + ends) - before(place - ends + 1)
        return torch.diff(inner, dim=-1, prepend=torch.zeros_like(inner[..., :1]))

    def _sheared(self, starts: list[int], inside: int, first: int) -> Tensor:
        """Add each bin as a rectangle: in steps of a row and a key, its edges are straight."""
        batch, heads, rows, _ = self.weights.shape
        bins = self.weights.new_zeros(batch, heads, rows, len(starts))
        batch_step, head_step, row_step, _ = self.weights.stride()
        at = self.weights.storage_offset()
        for number, start in enumerate(starts[:inside]):
            width = max(start, 1)
            view = self.weights.as_strided(
                (batch, heads, rows, width),
                (batch_step, head_step, row_step + 1, 1),
                at + first - start - width + 1,
            )
            torch.sum(view, dim=-1, out=bins[..., number])
        bins[..., inside] = self._upto(first - starts[inside])
        if first + rows > 2 * starts[inside]:
            bins[..., inside + 1] = self._upto(first - 2 * starts[inside])
            bins[..., inside].sub_(bins[..., inside + 1]).clamp_min_(0.0)
        return bins

    def _upto(self, last: int) -> Float[Tensor, "batch head query"]:
        """Add the weights up to a column, one more in each row."""
        rows, whole = self.weights.shape[2], max(last + 1, 0)
        corner = self.weights[..., whole : last + rows]
        seen = corner.new_ones(rows, corner.shape[-1]).tril(last - whole)
        return self.weights[..., :whole].sum(dim=-1).add_((corner * seen).sum(dim=-1))

    @cached_property
    def mixed(self) -> Float[Tensor, "batch head query size"]:
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


def distance_bins(length: int) -> list[int]:
    """List the smallest distance of each bin: 0, and powers of two up to a length."""
    return [0, *(1 << power for power in range((length - 1).bit_length()))]

"""A row panel: some queries of some heads against every key that they see."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.kernels.panels.reductions import distance_bins, select_topk, sheared
from headscope.kernels.request import NO_KEY, Request
from headscope.kernels.visibility import Visibility


@dataclass(eq=False)
class Panel:
    """Input of a statistic: exact attention weights of a few queries, all their keys at once.

    A row is complete, so every formula is the textbook one; nothing is rescaled afterwards. The
    tensors are reused for the next panel: a statistic returns new tensors or views, keeps none, and
    writes to ``scratch`` only.

    ``weights`` are zero in rows without a visible key, and without data where the sweep kept none,
    so that reading them fails; ``scratch`` is memory of their shape for intermediate results.
    ``values`` are those of the panel's keys, one for each KV head. ``queries`` is whole tiles or a
    part of one tile, and ``keys`` starts at a tile. ``targets`` are the target keys of these
    queries and ``spans`` the span of each of these keys, -1 for none, or None where the request has
    none. ``invalid_rows`` are queries that are padding or see no key, and ``sinks`` the logits of
    the learned sinks, an outcome besides the keys; either is None where there is none. ``computed``
    holds properties that were computed together with the weights, by name.
    """

    compute_logits: Callable[[], Float[Tensor, "batch head query key"]]
    max_logit: Float[Tensor, "batch head query"]
    weights: Float[Tensor, "batch head query key"]
    scratch: Float[Tensor, "batch head query key"]
    values: Float[Tensor, "batch_kv_head key size"]
    queries: slice
    keys: slice
    targets: Int[Tensor, "batch target query occurrence"] | None
    spans: Int[Tensor, "batch key"] | None
    invalid_rows: Bool[Tensor, "batch head query"] | None
    sinks: Float[Tensor, "head 1"] | None
    visibility: Visibility
    request: Request
    computed: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A cached property that is there already is not computed again.
        vars(self).update(self.computed)

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

    @cached_property
    def lse_minus_max(self) -> Float[Tensor, "batch head query"]:
        """The normaliser less the largest logit, lse - peak: 0 or more over keys only."""
        return -self.max_prob.log()

    @property
    def lse(self) -> Float[Tensor, "batch head query"]:
        """Logarithm of the sum of all outcomes' exponentials: weight = exp(logit - lse)."""
        return self.max_logit + self.lse_minus_max

    @cached_property
    def sink_prob(self) -> Float[Tensor, "batch head query"]:
        """Share of the learned sinks."""
        if self.sinks is None:
            return torch.zeros_like(self.max_logit)
        return torch.exp(self.sinks - self.max_logit - self.lse_minus_max)

    @cached_property
    def logits(self) -> Float[Tensor, "batch head query key"]:
        """Finished scores, hidden keys at -1e30; rows of padding are arbitrary."""
        return self.compute_logits()

    @cached_property
    def entropy(self) -> Float[Tensor, "batch head query"]:
        """Entropy of the outcomes."""
        # Two terms that are never negative: nothing cancels.
        keys = self.lse_minus_max - self.mean_minus_max
        return keys if self.sinks is None else keys + self.sink_prob * (self.max_logit - self.sinks)

    @cached_property
    def mean_minus_max(self) -> Float[Tensor, "batch head query"]:
        """Weighted mean of the logits, less the largest: 0 or less."""
        gap = torch.sub(self.logits, self.max_logit[..., None], out=self.scratch)
        return gap.mul_(self.weights).sum(dim=-1)

    @cached_property
    def max_prob(self) -> Float[Tensor, "batch head query"]:
        """Largest weight of each row."""
        return self.weights.amax(dim=-1)

    @cached_property
    def key_sum(self) -> Float[Tensor, "batch head key"]:
        """Weights summed over the queries."""
        return self._key_sum.sum(dim=2)

    @cached_property
    def key_max(self) -> Float[Tensor, "batch head key"]:
        """Largest weight among the queries."""
        return self._key_max.amax(dim=2)

    @cached_property
    def tile_sum(self) -> Float[Tensor, "batch head query_tile key_tile"]:
        """Weights summed over the queries and keys of each tile."""
        return self._across(self._key_sum).sum(dim=-1)

    @cached_property
    def tile_max(self) -> Float[Tensor, "batch head query_tile key_tile"]:
        """Largest weight among the queries and keys of each tile."""
        return self._across(self._key_max).amax(dim=-1)

    @cached_property
    def _key_sum(self) -> Float[Tensor, "batch head query_tile key"]:
        def add(tiles: Tensor) -> Tensor:
            # A product with ones reads row after row, and is faster than a sum over rows.
            return torch.bmm(tiles.new_ones(len(tiles), 1, tiles.shape[1]), tiles)

        return self._down(add)

    @cached_property
    def _key_max(self) -> Float[Tensor, "batch head query_tile key"]:
        return self._down(lambda tiles: tiles.amax(dim=1))

    def _down(
        self, reduce: Callable[[Float[Tensor, "_ tile key"]], Tensor]
    ) -> Float[Tensor, "batch head query_tile key"]:
        """Reduce the weights over the queries of each tile; the last tile may be a short one."""
        batch, heads, rows, keys = self.weights.shape
        tile = min(self.request.tile, rows)
        in_tiles = rows // tile * tile
        if in_tiles == rows:
            return reduce(self.weights.view(-1, tile, keys)).view(batch, heads, -1, keys)
        pieces = torch.split(self.weights, [in_tiles, rows - in_tiles], dim=2)
        reduced = [
            reduce(piece.reshape(-1, count, keys)).view(batch, heads, -1, keys)
            for piece, count in zip(pieces, (tile, rows - in_tiles), strict=True)
        ]
        return torch.cat(reduced, dim=2)

    def _across(self, columns: Tensor) -> Float[Tensor, "batch head query_tile key_tile tile"]:
        """Split the columns into tiles; the last tile is padded with zeros."""
        tile = self.request.tile
        short = -columns.shape[-1] % tile
        padded = torch.nn.functional.pad(columns, (0, short)) if short else columns
        return torch.unflatten(padded, -1, (-1, tile))

    @cached_property
    def topk_index(self) -> Int[Tensor, "batch head query rank"]:
        """Columns of the request's ``k`` largest weights of each row, -1 where it sees fewer."""
        return select_topk(self.logits, self.request.k)

    @cached_property
    def topk_weights(self) -> Float[Tensor, "batch head query rank"]:
        """Weights at the leaders, NaN where a row sees fewer."""
        weights = self.weights.gather(3, self.topk_index.clamp_min(0))
        return weights.masked_fill(self.topk_index < 0, float("nan"))

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
        return self.sum_before(self.weights)

    @staticmethod
    def sum_before(
        weights: Float[Tensor, "batch head query key"],
    ) -> Float[Tensor, "batch head query boundary"]:
        """Add the weights before each key, and in the end all."""
        batch, heads, queries, keys = weights.shape
        key_sum = weights.new_empty(batch, heads, queries, keys + 1)
        key_sum[..., 0] = 0
        torch.cumsum(weights, dim=-1, out=key_sum[..., 1:])
        return key_sum

    def within(
        self,
        reach: Int[Tensor, "#batch #head #query choice"],
        before: Float[Tensor, "batch head query boundary"] | None = None,
    ) -> Float[Tensor, "batch head query choice"]:
        """Add the weights of the keys at a distance below ``reach``, to either side.

        ``before`` are the sums before each key, where not all weights count.
        """
        before = self.before if before is None else before
        batch, heads, queries, keys = self.weights.shape
        position = self.visibility.positions[self.queries, None] - self.keys.start
        shape = (batch, heads, queries, -1)
        # In causal order nothing lies ahead, and the mass so far is that of the whole row.
        stop = (position + reach).clamp(0, keys).expand(shape)
        start = (position - reach + 1).clamp(0, keys).expand(shape)
        return before.gather(3, stop) - before.gather(3, start)

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
        keys = self.weights.shape[-1]
        straight = self.visibility.causal and 0 <= first == keys - self.weights.shape[2]
        # A row of NaN would show in the row after it.
        if straight and not bool(self.max_prob.isnan().any()):
            return sheared(self.weights, starts)
        ends = torch.tensor([*starts[1:], 2 * starts[-1] + 1], device=self.weights.device)
        offsets = self.visibility.positions[self.queries, None] - self.keys.start
        key_sum = torch.cumsum(self.weights, dim=-1, out=self.scratch)

        def before(key: Tensor) -> Tensor:
            last = (key.clamp(0, keys) - 1).expand(*self.weights.shape[:2], -1, -1)
            return key_sum.gather(3, last.clamp_min(0)).masked_fill_(last < 0, 0.0)

        inner = before(offsets + ends) - before(offsets - ends + 1)
        return torch.diff(inner, dim=-1, prepend=torch.zeros_like(inner[..., :1]))

    @cached_property
    def attn_output(self) -> Float[Tensor, "batch head query size"]:
        """Average the values by the weights."""
        batch, heads, queries, keys = self.weights.shape
        # Query heads that share a KV head are rows of one product: K and V are never expanded.
        rows = self.weights.view(len(self.values), -1, keys)
        return torch.bmm(rows, self.values).view(batch, heads, queries, -1)

    def at(
        self, keys: Int[Tensor, "#batch #query choice"]
    ) -> Float[Tensor, "batch head query choice"]:
        """Gather the weights at some keys of every query: 0 at -1 and at keys it cannot see."""
        batch, heads, queries, _ = self.weights.shape
        inside = (keys != NO_KEY) & (keys >= self.keys.start) & (keys < self.keys.stop)
        index = torch.where(inside, keys - self.keys.start, 0)[:, None]
        gathered = self.weights.gather(3, index.expand(batch, heads, queries, -1))
        return gathered.masked_fill_(~inside[:, None], 0.0)

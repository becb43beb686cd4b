"""Statistics of attention from torch's own fused attention: the oracle where no N×N matrix fits.

Fused attention gives z and the normaliser, and its values may be anything. With the keys as values
it gives the mean logit of each row, so the entropy; with one-hot rows, the mass on each span or
tile; with queries and keys swapped, its normaliser is the log of the column sums. On the processor
everything is float64, on other devices float32 from products of float32.
"""

import torch
from torch import Tensor

from headscope.kernels.api import PLAIN, AttentionSpec, Request

BLOCK = 512
ROWS = 64
WIDTH = 256
"""Columns of values in one call: more would make queries and keys as wide."""
HIDDEN = -1e9
"""Logit of a key that a padded block must not see: finite, and far below any real one."""


def fused(q: Tensor, k: Tensor, x: Tensor, window: int | None, causal: bool) -> tuple[Tensor, ...]:
    """Mix the rows of x by the softmax of q·k: what comes out, and the log of the normaliser."""
    if window is None:
        return attention(q, k, x, None, causal)
    batch, length = q.shape[0], q.shape[2]
    count = -(-length // BLOCK)
    back, ahead = window - 1, 0 if causal else window - 1
    width = -(-(BLOCK + back + ahead) // 8) * 8
    # Keys before the first and after the last are distinguished by one more column.
    q = torch.cat((q, torch.ones_like(q[..., :1])), -1)
    k = torch.cat((k, torch.zeros_like(k[..., :1])), -1)
    end = (count - 1) * BLOCK + width - back - length
    pad = torch.nn.functional.pad
    q = pad(q, (0, 0, 0, count * BLOCK - length))
    k, x = pad(k, (0, 0, back, end)), pad(x, (0, 0, back, end))
    k[:, :, :back, -1] = k[:, :, back + length :, -1] = HIDDEN
    rows = q.unflatten(2, (count, BLOCK)).transpose(1, 2).flatten(0, 1)
    keys, values = (
        tensor.unfold(2, width, BLOCK).permute(0, 2, 1, 4, 3).flatten(0, 1) for tensor in (k, x)
    )
    step = torch.arange(BLOCK, device=q.device)[:, None] + back
    distance = step - torch.arange(width, device=q.device)
    mask = torch.zeros(BLOCK, width, dtype=q.dtype, device=q.device)
    mask[(distance < -ahead) | (distance > back)] = -torch.inf
    mixed, lse = attention(rows, keys, values, mask, False)
    mixed = mixed.unflatten(0, (batch, count)).transpose(1, 2).flatten(2, 3)[:, :, :length]
    return mixed, lse.unflatten(0, (batch, count)).transpose(1, 2).flatten(2, 3)[:, :, :length]


def attention(
    q: Tensor, k: Tensor, x: Tensor, mask: Tensor | None, causal: bool
) -> tuple[Tensor, ...]:
    """Call the fused operation of the device by its own name, so that nothing can fall back."""
    aten = torch.ops.aten
    columns = x.shape[-1]
    # The processor wants three tensors of one size, other devices whole groups of 16 bytes.
    size = -(-max(columns, q.shape[-1]) // 8) * 8
    q, k, x = (
        torch.nn.functional.pad(tensor, (0, size - tensor.shape[-1])) for tensor in (q, k, x)
    )
    if mask is not None:
        mask = mask.expand(*q.shape[:2], *mask.shape)
    if q.is_cuda:
        mixed, lse = aten._scaled_dot_product_efficient_attention(
            q, k, x, mask, True, 0.0, causal, scale=1.0
        )[:2]
    else:
        mixed, lse = aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, x, 0.0, causal, attn_mask=mask, scale=1.0
        )
    # Here the normaliser comes with its strides transposed, there with padded rows.
    return mixed[..., :columns], lse[..., : q.shape[2]].contiguous()


class Stock:
    """One attention call, as many queries as keys, none of them padding.

    Logits are plain products of longer queries and keys: the scale is in the queries, and the slope
    of ALiBi, -slope · (i - j), takes two more columns. It is exact in float64 only.
    """

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, request: Request, spec: AttentionSpec = PLAIN
    ) -> None:
        told = ("scale", "causal", "window", "slopes", "sinks")
        other = {name: value for name, value in vars(spec).items() if name not in told}
        assert not any(value is not None and value is not False for value in other.values()), other
        assert q.shape[2] == k.shape[2], "fused attention disagrees about order otherwise"
        slopes, sinks, scale = spec.slopes, spec.sinks, spec.scale
        window, causal = spec.window, spec.causal
        assert slopes is None or (causal and not q.is_cuda)
        dtype = torch.float32 if q.is_cuda else torch.float64
        group = q.shape[1] // k.shape[1]
        self.q = q.to(dtype) * (q.shape[3] ** -0.5 if scale is None else scale)
        self.k, self.v = (tensor.to(dtype).repeat_interleave(group, 1) for tensor in (k, v))
        self.request, self.causal, self.window = request, causal, window
        self.position = torch.arange(q.shape[2], device=q.device)
        if slopes is not None:
            place = self.position[:, None].to(dtype).expand(*q.shape[:3], 1)
            slope = slopes.to(dtype)[None, :, None, None].expand_as(place)
            self.q = torch.cat((self.q, -slope * place, slope), -1)
            self.k = torch.cat((self.k, torch.ones_like(place), place), -1)
        self.sinks = None if sinks is None else sinks.to(dtype)[None, :, None]
        self.z, self.keys_only = fused(self.q, self.k, self.v, window, causal)
        self.lse = self.keys_only
        if self.sinks is not None:
            self.lse = torch.logaddexp(self.keys_only, self.sinks)
            self.z = self.z * self.share[..., None]

    @property
    def share(self) -> Tensor:
        """What a learned sink leaves to the keys of each query."""
        return (self.keys_only - self.lse).exp()

    def mix(self, x: Tensor) -> Tensor:
        """Average the rows of x (batch or 1, head or 1, key, column) by the weights."""
        x = x.to(self.q.dtype).expand(*self.k.shape[:3], -1)
        mixed = [
            fused(self.q, self.k, some, self.window, self.causal)[0] for some in x.split(WIDTH, -1)
        ]
        return torch.cat(mixed, -1) * self.share[..., None]

    def entropy(self) -> Tensor:
        """lse - E[s], where the mean logit is the product of the query and the mean key."""
        mean = (self.q * self.mix(self.k)).sum(-1)
        if self.sinks is not None:
            mean = mean + (self.sinks - self.lse).exp() * self.sinks
        return self.lse - mean

    def columns(self, window: int | None) -> Tensor:
        """Column sums as the normaliser of keys that attend to queries, backwards in time."""
        one = torch.ones_like(self.q[..., :1])
        forward = torch.cat((self.k, one), -1), torch.cat((self.q, -self.lse[..., None]), -1)
        q, k = (each.flip(2) for each in forward) if self.causal else forward
        total = fused(q, k, one, window, self.causal)[1].exp()
        return total.flip(2) if self.causal else total

    def received(self) -> Tensor:
        """Divide the column sums by the number of queries that see the key."""
        length, reach = len(self.position), self.window or len(self.position)
        after = (length - self.position).clamp_max(reach)
        ahead = 0 if self.causal else (self.position + 1).clamp_max(reach) - 1
        return self.columns(self.window) / (after + ahead)

    def received_later(self) -> Tensor:
        """Subtract the column sums of two windows, the nearer from the farther."""
        length, reach = len(self.position), self.window or len(self.position)
        near, far = (
            min(edge, reach) for edge in (self.request.horizon[0], self.request.horizon[1] + 1)
        )
        total, count = self.columns(far), (length - self.position).clamp_max(far)
        if near:
            total = total - self.columns(near)
            count = count - (length - self.position).clamp_max(near)
        # Where no query counts, the difference of two sums may be off 0 by a rounding.
        return torch.where(count > 0, total / count, torch.nan)

    def received_last(self) -> Tensor:
        """Add up the last rows, each with all its keys."""
        total, count = torch.zeros_like(self.lse), torch.zeros_like(self.position)
        for query in self.position[-self.request.last :].tolist():
            logits = (self.k @ self.q[:, :, query, :, None])[..., 0]
            back = query - self.position
            sees = back >= 0 if self.causal else torch.ones_like(back, dtype=torch.bool)
            if self.window is not None:
                sees &= back.abs() < self.window
            total += torch.where(sees, (logits - self.lse[:, :, query, None]).exp(), 0.0)
            count += sees
        return total / count

    def learned_sink_mass(self) -> Tensor:
        """What a learned sink takes."""
        return 1 - self.share

    def pooled_mean(self) -> Tensor:
        """Mass on each tile of keys, averaged over the queries of a tile."""
        tile, length = self.request.tile, len(self.position)
        member = torch.nn.functional.one_hot(self.position // tile)
        rows = self.mix(member)
        total = torch.zeros_like(rows[:, :, : member.shape[1]])
        total.index_add_(2, self.position // tile, rows)
        count = member.sum(0).to(rows)
        assert int(count.sum()) == length
        return total / count[:, None]

    def weights_at(self, keys: Tensor) -> Tensor:
        """Weights of one key of each query (query,): 0 where it does not see it."""
        inside = (keys >= 0) & (keys < len(self.position))
        logits = (self.q * self.k[:, :, keys.clamp(0, len(self.position) - 1)]).sum(-1)
        back = self.position - keys
        sees = back >= 0 if self.causal else inside
        if self.window is not None:
            sees = sees & (back.abs() < self.window)
        return torch.where(sees & inside, (logits - self.lse).exp(), 0.0)

    def first_mass(self) -> Tensor:
        """Add up the first keys, one by one."""
        each = (
            self.weights_at(torch.full_like(self.position, key))
            for key in range(self.request.first)
        )
        return sum(each, torch.zeros_like(self.lse))

    def offset_mass(self) -> Tensor:
        """Read the diagonals; NaN before the first and after the last key."""
        columns = []
        for offset in self.request.offsets:
            keys = self.position - offset
            absent = (keys < 0) | (keys >= len(keys))
            columns.append(self.weights_at(keys).masked_fill(absent, torch.nan))
        return torch.stack(columns, -1)

    def recent_mass(self) -> Tensor:
        """Compare the normaliser of a shorter window with that of the whole row."""
        window = min(self.request.recent, self.window or self.request.recent)
        near = fused(self.q, self.k, self.v, window, True)[1]
        return (near - self.lse).exp()

    def linear(self) -> dict[str, Tensor]:
        """Whatever is linear in the weights of a row, all in one call."""
        spans = self.request.spans
        assert spans is not None
        spans = spans.to(self.position.device).long()
        member = torch.nn.functional.one_hot(spans + 1)[..., 1:].to(self.q)
        norms = self.v.norm(dim=-1, keepdim=True)
        # From the middle of the text, so that squares stay small.
        place = (self.position - len(self.position) // 2).to(self.q)
        places = torch.stack((torch.ones_like(place), place, place**2), -1)
        places = places.expand(*norms.shape[:3], 3)
        member = member[:, None].expand(-1, norms.shape[1], -1, -1)
        mixed = self.mix(torch.cat((norms, places, member), -1))
        total, first, second = mixed[..., 1:4].unbind(-1)
        empty = ~member.bool().any(2, keepdim=True)
        spread = mixed[..., 4:].masked_fill(empty, torch.nan)
        result = {"value_mass": mixed[..., 0], "span_mass": spread}
        if self.causal and self.request.clip is None:
            mean = place * total - first
            square = place**2 * total - 2 * place * first + second
            result["distance"] = mean
            if not self.q.is_cuda:  # in float32 nothing is left of it
                result["distance_variance"] = square - 2 * mean**2 + mean**2 * total
        return result

    def peaks(self) -> dict[str, Tensor]:
        """Largest weights, from the logs of a few whole rows at a time."""
        length, tile, window = len(self.position), self.request.tile, self.window
        reach, ahead = window or length, 0 if self.causal else (window or length) - 1
        count = -(-length // tile)
        row = torch.empty_like(self.lse)
        column = torch.full_like(self.lse, -torch.inf)
        tiles = self.lse.new_full((*self.lse.shape[:2], count, count), -torch.inf)
        for start in range(0, length, ROWS):
            rows = slice(start, min(start + ROWS, length))
            low = max(start - reach + 1, 0) // tile * tile
            keys = slice(low, min(rows.stop + ahead, length))
            logs = self.q[:, :, rows] @ self.k[:, :, keys].mT
            logs.sub_(self.lse[:, :, rows, None])
            back = self.position[rows, None] - self.position[keys]
            logs.masked_fill_((back >= reach) | (back < -ahead), -torch.inf)
            row[:, :, rows] = logs.amax(-1)
            seen = column[:, :, keys]
            torch.maximum(seen, logs.amax(2), out=seen)
            logs = torch.nn.functional.pad(logs, (0, (low - keys.stop) % tile), value=-torch.inf)
            narrow = logs.unflatten(-1, (-1, tile)).amax(-1)
            index = (self.position[rows, None] // tile).expand_as(narrow)
            columns = slice(low // tile, low // tile + narrow.shape[-1])
            tiles[..., columns].scatter_reduce_(2, index, narrow, "amax")
        result = {"max_weight": row, "received_max": column, "pooled_max": tiles}
        return {name: value.exp() for name, value in result.items()}


def stock(
    q: Tensor, k: Tensor, v: Tensor, request: Request, spec: AttentionSpec = PLAIN
) -> dict[str, Tensor]:
    """Every statistic of the request that fused attention can tell, as `attend` returns it.

    The variant may have a scale, order, a window, slopes and sinks. The rest (top keys, histogram,
    effective span, targets, pattern) is left out, and so is what needs causal order without it.
    """
    one = Stock(q, k, v, request, spec)
    result = {"z": one.z, "lse": one.lse}
    expected = set(request.stats)
    alone = ["entropy", "received", "received_last", "learned_sink_mass", "pooled_mean"]
    alone += ["first_mass", "offset_mass", *(["recent_mass", "received_later"] * one.causal)]
    for name in alone:
        if name in expected:
            result[name] = getattr(one, name)()
    for group, together in (
        (("value_mass", "span_mass", "distance", "distance_variance"), one.linear),
        (("max_weight", "received_max", "pooled_max"), one.peaks),
    ):
        if expected & set(group):
            result |= together()
    return {name: value for name, value in result.items() if name in expected | {"z"}}

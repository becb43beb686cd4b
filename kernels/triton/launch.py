"""The host side of a launch: tensors and spec as kernel arguments, and the tiles to visit.

Passes over the weights get ``lse``, the normaliser of every row in base 2: 1e30 at rows that are
padding or see no key, 0 for sigmoid weights, which have none.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.kernels.attention_spec import AttentionSpec
from headscope.kernels.errors import InvalidInput, ResourceLimit
from headscope.kernels.triton.configuration import Configuration, padded
from headscope.kernels.triton.operand import HIDDEN as HIDDEN
from headscope.kernels.triton.operand import LOG2E as LOG2E
from headscope.kernels.triton.operand import Operand as Operand
from headscope.kernels.triton.operand import by_head, by_token, table
from headscope.kernels.visibility import Visibility
from headscope.kernels.weight_edits import WeightEdits

CUT = -6e29
"""Bias of a key that an edit knocks out: it weighs 0, but unlike padding may be read."""
DEAD = 1e30
"""Base-2 normaliser of a row without keys: every weight of the row is then exactly 0."""
UNLIMITED = 1 << 30
"""``recent`` of a head that is not limited: more keys than any text has."""
LARGEST_BYTES = 512
"""Bytes of the largest head whose tiles fit in registers: 256 channels, 128 in float32."""
PRECISION = "tf32x3"
"""Products of float32: three of TF32, which leave 1e-6; one would leave 3e-4."""
LARGEST_STRIDE = 1 << 22
"""Largest stride of a token or channel, so that offsets inside a tile fit in 32 bits."""


PerQuery = Float[Tensor, "batch head query"]
"""A number for each query of each head, as ``lse`` is."""


class Terms(NamedTuple):
    """Terms that turn q·k into logits, as kernel arguments; a term that is None costs nothing."""

    queries: int
    keys: int
    shift: int
    """Position of the first query among the keys."""
    factor: float
    """Multiplies q·k: scale · log2 e, or scale / cap."""
    softcap: float | None
    """Cap · log2 e."""
    low: Tensor
    high: Tensor
    """First visible key of every query, and one past the last: int32 (query)."""
    query_mask: Operand
    """1 at real queries: uint8 (batch, query)."""
    slopes: Tensor | None
    """ALiBi slopes · log2 e: float32 (head)."""
    bias: Operand
    """Natural, as given: (batch, head, query, key)."""
    temperature: Tensor | None
    """float32 (head)."""
    key_bias: Operand
    """Base 2, ``CUT`` at keys knocked out, ``HIDDEN`` at padding: float32 (batch, head, key)."""
    span_bias: Operand
    """Base 2, finite: float32 (head, query_span, key_span)."""
    query_spans: Operand
    key_spans: Operand
    """int32 (batch, token), -1 for none."""
    first_stop: Operand
    """One past the last of the first keys that a limited head sees: int32 (batch, head, query)."""
    recent: Tensor | None
    """Last keys that a limited head sees, ``UNLIMITED`` elsewhere: int32 (head)."""
    pattern: Operand
    """Logits, base 2, that take the place of others, NaN for none: (batch, head, query, key)."""


@dataclass(frozen=True, eq=False)
class Launch:
    """One attention call as the kernels of all passes read it, in any layout, without a copy."""

    q: Tensor
    k: Tensor
    v: Tensor
    spec: AttentionSpec

    def __post_init__(self) -> None:
        for name, tensor in (("q", self.q), ("k", self.k), ("v", self.v)):
            largest = LARGEST_BYTES // tensor.element_size()
            if tensor.shape[3] > largest:
                raise ResourceLimit(
                    f"{name}: head size {tensor.shape[3]}; the Triton engine takes up to {largest} "
                    f"in {tensor.dtype}, use engine='panels'"
                )
            if max(tensor.stride()[2:]) > LARGEST_STRIDE:
                raise InvalidInput(
                    f"{name}: {max(tensor.stride()[2:])} elements between tokens; give "
                    f"{name}.contiguous(), which has fewer than {LARGEST_STRIDE}"
                )

    @cached_property
    def visibility(self) -> Visibility:
        """Which keys each query may see."""
        return self.spec.visibility(self.q.shape[2], self.k.shape[2], self.q.device)

    @property
    def group(self) -> int:
        """Number of query heads that share a KV head."""
        return self.q.shape[1] // self.k.shape[1]

    @property
    def _extras(self) -> list[object]:
        """Terms that make logits differ from q·k times a factor."""
        terms = self.terms
        extras = (
            terms.softcap, terms.slopes, terms.temperature, terms.recent, terms.bias.pointer,
            terms.key_bias.pointer, terms.span_bias.pointer, terms.pattern.pointer,
        )  # fmt: skip
        return [extra for extra in extras if extra is not None]

    @property
    def plain(self) -> bool:
        """Whether logits are q·k times a positive factor: nothing is added, capped or edited."""
        return self.terms.factor > 0 and not self._extras

    @property
    def heavy(self) -> bool:
        """Whether terms need so many registers that tiles must be small: several, or of N×N."""
        terms = self.terms
        tables = (terms.bias.pointer, terms.span_bias.pointer, terms.pattern.pointer)
        return len(self._extras) > 1 or any(table is not None for table in tables)

    @property
    def aligned(self) -> bool:
        """Whether k and v suit TMA: no key stays unread, and every token starts at 16 bytes."""
        return self.terms.key_bias.pointer is None and all(
            tensor.stride(3) == 1
            and tensor.data_ptr() % 16 == 0
            and all(stride * tensor.element_size() % 16 == 0 for stride in tensor.stride()[:3])
            for tensor in (self.k, self.v)
        )

    def arguments(self, tiles: Configuration | None = None) -> dict[str, Any]:
        """Collect the arguments that every kernel takes, and those of its tiles."""
        size = self.q.shape[3]
        shared = {
            "q": self.operand(self.q),
            "k": self.operand(self.k),
            "terms": self.terms,
            "group": self.group,
            "SIZE": size,
            "BLOCK_SIZE": padded(size),
        }
        if tiles is None:
            return shared
        return shared | {"PRECISION": PRECISION, "QUERIES": tiles.queries, "KEYS": tiles.keys}

    def operand(self, tensor: Tensor) -> Operand:
        """Describe a tensor (batch, head, token, size) to a kernel."""
        return Operand(tensor, *tensor.stride())

    @cached_property
    def terms(self) -> Terms:
        """Everything between q·k and the logits."""
        spec, visibility = self.spec, self.visibility
        edits = spec.edits or WeightEdits()
        batch, heads = self.q.shape[:2]
        queries, keys = visibility.queries, visibility.keys
        scale, cap = spec.scale, spec.softcap
        assert scale is not None
        first_stop, recent = self._limits()
        return Terms(
            queries=queries,
            keys=keys,
            shift=visibility.shift,
            factor=scale * LOG2E if cap is None else scale / cap,
            softcap=None if cap is None else cap * LOG2E,
            low=visibility.low.to(torch.int32),
            high=visibility.high.to(torch.int32),
            query_mask=by_token(visibility.query_mask, batch, queries, torch.uint8),
            slopes=by_head(spec.slopes, LOG2E),
            bias=self._pairs(spec.bias),
            temperature=by_head(edits.temperature, 1.0),
            key_bias=self._key_bias(),
            span_bias=table(edits.span_bias, heads),
            query_spans=by_token(edits.query_spans, batch, queries, torch.int32),
            key_spans=by_token(edits.key_spans, batch, keys, torch.int32),
            first_stop=first_stop,
            recent=recent,
            pattern=self._pattern(),
        )

    @cached_property
    def sinks(self) -> Float[Tensor, " head"] | None:
        """Logits of the learned sinks in base 2; None where there are none."""
        edits, sinks = self.spec.edits, self.spec.sinks
        if sinks is None:
            return None
        if edits is not None and edits.temperature is not None:
            sinks = sinks / edits.temperature
        return (sinks.float() * LOG2E).clamp_min(HIDDEN).contiguous()

    def _key_bias(self) -> Operand:
        """Padded keys and knocked-out keys as one bias, in base 2."""
        edits, mask = self.spec.edits, self.visibility.key_mask
        edited = None if edits is None else edits.key_bias
        if edited is None and mask is None:
            return Operand(None)
        bias = torch.zeros(1, 1, self.visibility.keys, device=self.q.device)
        if edited is not None:
            bias = edited.float().mul(LOG2E).clamp_min(CUT)
        if mask is not None:
            bias = bias.masked_fill(~mask[:, None], HIDDEN)
        bias = bias.contiguous().expand(self.q.shape[0], self.q.shape[1], -1)
        return Operand(bias, *bias.stride()[:2]).inner()

    def _pattern(self) -> Operand:
        """Fixed weights as logits."""
        edits, mask = self.spec.edits, self.visibility.key_mask
        if edits is None or edits.pattern is None:
            return Operand(None)
        fixed = edits.pattern.float().log2().clamp_min(HIDDEN)
        if mask is not None:
            fixed = torch.where(mask[:, None, None] | fixed.isnan(), fixed, HIDDEN)
        return self._pairs(fixed)

    def _pairs(self, values: Tensor | None) -> Operand:
        """Describe numbers of pairs of a query and a key, or of all alike, to a kernel."""
        if values is None:
            return Operand(None)
        shape = (*self.q.shape[:2], self.visibility.queries, self.visibility.keys)
        return self.operand(values.expand(shape)).inner()

    def _limits(self) -> tuple[Operand, Tensor | None]:
        """First and last keys that limited heads see."""
        edits, visibility = self.spec.edits, self.visibility
        if edits is None or edits.recent is None:
            return Operand(None), None
        recent = edits.recent.to(torch.int32)
        assert edits.first is not None
        ranked = visibility.first_keys(int(edits.first.max()))
        # One past the first key of each rank; where there are fewer, all keys.
        ends = torch.nn.functional.pad(torch.where(ranked < 0, visibility.keys, ranked + 1), (1, 0))
        stops = ends[:, :, edits.first.long()].mT.to(torch.int32).contiguous()
        stops = stops.expand(self.q.shape[0], self.q.shape[1], visibility.queries)
        recent = recent.masked_fill(recent == 0, UNLIMITED).contiguous()
        return Operand(stops, *stops.stride()).inner(), recent

    def bounds(self, rows: int, columns: int) -> Int[Tensor, "batch tile 4"]:
        """Bound the keys of each tile of ``rows`` queries: start, full_start, full_stop, stop.

        Keys from ``full_start`` to ``full_stop`` are seen by every query of the tile, as to order
        and window: tiles of ``columns`` keys there need no EDGE. All are multiples of ``columns``
        except ``stop``, where nothing more is visible; start <= full_start <= full_stop.
        """
        visibility = self.visibility
        low, high = _tiles(visibility.low, rows), _tiles(visibility.high, rows)
        # A query that sees nothing has high <= low: it may not widen the range.
        dead = high <= low
        start = low.masked_fill(dead, visibility.keys).amin(dim=1)[None]
        stop = high.masked_fill(dead, 0).amax(dim=1)[None]
        real = visibility.key_mask
        if real is not None:
            # Padding at either end is not visited at all.
            key = torch.arange(visibility.keys, device=real.device)
            first = key.where(real, visibility.keys).amin(dim=1, keepdim=True)
            last = key.where(real, -1).amax(dim=1, keepdim=True)
            start, stop = torch.maximum(start, first), torch.minimum(stop, last + 1)
        stop = torch.maximum(stop, start)
        start = start // columns * columns
        full_start = (low.amax(dim=1)[None] + columns - 1) // columns * columns
        full_start = torch.maximum(full_start, start)
        full_stop = torch.minimum(high.amin(dim=1)[None], stop) // columns * columns
        full_stop = torch.maximum(full_stop, full_start)
        bounds = torch.stack((start, full_start, full_stop, stop), dim=2)
        return bounds.expand(self.q.shape[0], -1, -1).to(torch.int32).contiguous()


def _tiles(values: Tensor, size: int) -> Tensor:
    """Split a vector into rows of ``size``, the last one repeated at the end."""
    short = -len(values) % size
    return torch.cat((values, values[-1:].expand(short))).view(-1, size)

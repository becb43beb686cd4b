"""Interventions on attention weights: scale keys, knock out, window, temperature, fix a pattern."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.kernels.api import WeightEdits
from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.probes.interventions.base import Edit, Head, HeadEdit, check_heads, digest

if TYPE_CHECKING:
    from headscope.probes.models.model import Geometry

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class ScaleKeys(HeadEdit):
    """Multiply the weights of some keys by a factor and let each row sum to 1 again.

    Sink calibration (Yu et al. 2024) with a factor below 1 at the sink, emphasis with one above.

    Attributes
    ----------
    keys
        Positions of the keys in tokens; -1 is the last.
    factor
        What each weight is multiplied by, 0 or more; 0 is `KnockOut`.
    """

    keys: Sequence[int]
    factor: float = field(metadata={"start": 0.5})

    def __post_init__(self) -> None:
        if not (self.factor >= 0 and math.isfinite(self.factor)):
            raise InvalidInput(f"ScaleKeys.factor: {self.factor}; give a finite number from 0")

    def inside(self, layer: int, shape: Shape) -> WeightEdits | None:
        """Add the logarithm of the factor to the logits of the keys."""
        rows = self.rows(layer)
        if not rows:
            return None
        bias = torch.zeros(1, shape[1], shape[3])
        columns = _positions("ScaleKeys.keys", self.keys, shape[3])
        amount = math.log(self.factor) if self.factor else -math.inf
        bias[:, torch.tensor(rows)[:, None], columns] = amount
        return WeightEdits(key_bias=bias)


@dataclass(frozen=True)
class KnockOut(HeadEdit):
    """Hide some keys from some queries, so that nothing flows between them in these heads.

    Attention knockout (Geva et al. 2023). A query without a visible key outputs 0.

    Attributes
    ----------
    keys
        Positions of the keys in tokens; -1 is the last.
    queries
        Positions of the queries; None is all.
    """

    keys: Sequence[int]
    queries: Sequence[int] | None = None

    def inside(self, layer: int, shape: Shape) -> WeightEdits | None:
        """Hide a span of keys from a span of queries."""
        rows = self.rows(layer)
        if not rows:
            return None
        batch, heads, queries, keys = shape
        table = torch.zeros(heads, 1, 1)
        table[rows] = -math.inf
        query_spans = torch.zeros(queries, dtype=torch.long)
        if self.queries is not None:
            query_spans -= 1
            query_spans[_positions("KnockOut.queries", self.queries, queries)] = 0
        key_spans = torch.full((keys,), -1)
        key_spans[_positions("KnockOut.keys", self.keys, keys)] = 0
        return WeightEdits(
            span_bias=table,
            query_spans=query_spans.expand(batch, -1),
            key_spans=key_spans.expand(batch, -1),
        )


@dataclass(frozen=True)
class Window(HeadEdit):
    """Restrict some heads to the first keys and the last ones: streaming heads.

    A head whose output stays the same needs no long cache (DuoAttention, Xiao et al. 2024).

    Attributes
    ----------
    recent
        Number of last keys, the query's own included; 1 or more.
    first
        Number of first keys, the sinks; 0 or more.
    """

    recent: int = field(metadata={"start": 4})
    first: int = 4

    def __post_init__(self) -> None:
        if self.recent < 1 or self.first < 0:
            raise InvalidInput(
                f"Window: recent {self.recent}, first {self.first}; "
                "give 1 recent key or more, 0 first keys or more"
            )

    def check(self, shape: Geometry) -> None:
        """Refuse heads that the model does not have, and keys that are no tokens before a query."""
        super().check(shape)
        if shape.crossed:
            raise NotApplicable("Window: cross-attention has no last keys; use KnockOut")

    def inside(self, layer: int, shape: Shape) -> WeightEdits | None:
        """Limit the named heads of one layer."""
        rows = self.rows(layer)
        if not rows:
            return None
        recent, first = torch.zeros(2, shape[1], dtype=torch.long)
        recent[rows], first[rows] = self.recent, self.first
        return WeightEdits(recent=recent, first=first)


@dataclass(frozen=True)
class Temperature(HeadEdit):
    """Divide the logits of some heads: above 1 they spread their attention, below they focus it.

    Attributes
    ----------
    value
        The temperature, above 0.
    """

    value: float = field(metadata={"start": 2.0})

    def __post_init__(self) -> None:
        if not (self.value > 0 and math.isfinite(self.value)):
            raise InvalidInput(f"Temperature.value: {self.value}; give a finite number above 0")

    def inside(self, layer: int, shape: Shape) -> WeightEdits | None:
        """Set the temperature of the named heads of one layer."""
        rows = self.rows(layer)
        if not rows:
            return None
        temperature = torch.ones(shape[1])
        temperature[rows] = self.value
        return WeightEdits(temperature=temperature)


@dataclass(frozen=True)
class FixPattern(Edit):
    """Replace the weights of one head by a fixed pattern, on prompts of its length.

    Attributes
    ----------
    head
        The head, as a (layer, head) pair.
    values
        Weights, dims query, key: rows sum to 1, 0 where the query does not see the key.
    """

    head: Head
    values: Float[Tensor, "query key"]

    def inside(self, layer: int, shape: Shape) -> WeightEdits | None:
        """Replace the pattern of one head."""
        if layer != self.head[0]:
            return None
        if tuple(self.values.shape) != shape[2:]:
            raise InvalidInput(
                f"FixPattern.values: shape {tuple(self.values.shape)}, "
                f"but this prompt has {shape[2]} × {shape[3]} tokens"
            )
        pattern = torch.full((1, *shape[1:]), math.nan)
        pattern[0, self.head[1]] = self.values.float()
        return WeightEdits(pattern=pattern)

    def check(self, shape: Geometry) -> None:
        """Refuse a head that the model does not have."""
        check_heads("FixPattern.head", (self.head,), shape)

    def describe(self) -> dict[str, object]:
        """Describe the edit, with a digest of the pattern."""
        values = digest(self.values)
        return {"edit": "FixPattern", "head": list(self.head), "values_sha256": values}


def _positions(field: str, positions: Sequence[int], length: int) -> Tensor:
    for position in positions:
        if not -length <= position < length:
            raise InvalidInput(f"{field}: no position {position}; this prompt has {length} tokens")
    return torch.tensor([position % length for position in positions], dtype=torch.long)

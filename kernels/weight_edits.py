"""Interventions on attention heads inside the pass: gates, biases, masks, fixed patterns."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.kernels.errors import InvalidInput


@dataclass(frozen=True, eq=False)
class WeightEdits:
    """Interventions on the heads of one layer that cost no pass of their own.

    None leaves a thing as it is. Edits change weights, not who could see whom: the number of
    queries that an average like ``received`` divides by stays that of the unedited model, so that
    captures before and after compare.

    Parameters
    ----------
    gate
        Factor of each head's ``z``: 0 ablates it. A first dim of 1 is for every sequence.
    key_bias
        Added to the logits of each key. log γ multiplies the key's weight by γ before the row is
        normalised again; -inf knocks the key out. Dims of 1 are for all sequences, all heads.
    span_bias
        Added to the logits between a span of queries and a span of keys; -inf cuts the link.
    query_spans, key_spans
        Span of every query and key in ``span_bias``; -1 is none.
    first, recent
        A head with ``recent`` above 0 sees the last ``recent`` keys, the query's own included, and
        the ``first`` first real keys; 0 does not limit the head.
    temperature
        Divides every logit of a head, that of a learned sink too: above 0.
    pattern
        Weights that take the place of a head's own, NaN at the queries that keep theirs; the rows
        of the others sum to 1. N×N, so for short texts.

    References
    ----------
    Attention knockout: Dissecting Recall of Factual Associations (Geva et al. 2023). Sink
    calibration: Unveiling and Harnessing Hidden Attention Sinks (Yu et al. 2024). Streaming heads:
    DuoAttention (Xiao et al. 2024).

    Examples
    --------
    >>> from headscope.kernels.api import AttentionSpec, Request, attend
    >>> q = torch.zeros(1, 1, 3, 4)
    >>> halved = WeightEdits(key_bias=torch.tensor([0.5, 1.0, 1.0]).log().view(1, 1, 3))
    >>> attend(q, q, q, Request(stats=("first_mass",)), AttentionSpec(edits=halved))["first_mass"]
    tensor([[[1.0000, 0.3333, 0.2000]]])
    """

    gate: Float[Tensor, "_ head"] | None = None
    key_bias: Float[Tensor, "_ _ key"] | None = None
    span_bias: Float[Tensor, "_ query_span key_span"] | None = None
    query_spans: Int[Tensor, "batch query"] | None = None
    key_spans: Int[Tensor, "batch key"] | None = None
    first: Int[Tensor, " head"] | None = None
    recent: Int[Tensor, " head"] | None = None
    temperature: Float[Tensor, " head"] | None = None
    pattern: Float[Tensor, "_ _ query key"] | None = None

    @property
    def on_weights(self) -> bool:
        """Whether it changes weights: a gate alone does not."""
        return any(
            getattr(self, field.name) is not None for field in fields(self) if field.name != "gate"
        )

    def __post_init__(self) -> None:
        spans = (self.span_bias, self.query_spans, self.key_spans)
        if any(tensor is None for tensor in spans) and any(tensor is not None for tensor in spans):
            raise InvalidInput(
                "span_bias: give it with query_spans and key_spans, or none of the three"
            )
        if (self.first is None) != (self.recent is None):
            raise InvalidInput("first, recent: give both, one number a head, or neither")
        for name, count in (("first", self.first), ("recent", self.recent)):
            if count is not None and count.numel() and int(count.min()) < 0:
                raise InvalidInput(f"{name}: {int(count.min())} keys; give 0 or more")
        if self.temperature is not None and not bool((self.temperature > 0).all()):
            raise InvalidInput("temperature: give a number above 0 for every head")
        if self.pattern is not None:
            sums = self.pattern.sum(dim=-1)
            if bool((self.pattern < 0).any()) or bool(((sums - 1).abs() > 1e-3).any()):
                raise InvalidInput("pattern: give rows of weights from 0 that sum to 1, or all NaN")

    def check(self, batch: int, heads: int, queries: int, keys: int) -> None:
        """Refuse fields of another shape than the attention call."""
        expect("gate", self.gate, ((1, batch), (heads,)))
        expect("key_bias", self.key_bias, ((1, batch), (1, heads), (keys,)))
        expect("query_spans", self.query_spans, ((batch,), (queries,)))
        expect("key_spans", self.key_spans, ((batch,), (keys,)))
        expect("first", self.first, ((heads,),))
        expect("recent", self.recent, ((heads,),))
        expect("temperature", self.temperature, ((heads,),))
        expect("pattern", self.pattern, ((1, batch), (1, heads), (queries,), (keys,)))
        if self.spans is None:
            return
        table, *sides = self.spans
        if table.ndim != 3 or table.shape[0] not in (1, heads):
            raise InvalidInput(
                f"span_bias: shape {tuple(table.shape)}; "
                f"give (1 or head {heads}, query span, key span)"
            )
        for name, spans, size in zip(
            ("query_spans", "key_spans"), sides, table.shape[1:], strict=True
        ):
            if spans.is_floating_point() or int(spans.min()) < -1 or int(spans.max()) >= size:
                raise InvalidInput(f"{name}: give integers from -1, for none, to {size - 1}")

    @property
    def spans(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """The bias of links between spans, and the spans of queries and keys."""
        if self.span_bias is None or self.query_spans is None or self.key_spans is None:
            return None
        return self.span_bias, self.query_spans, self.key_spans

    @property
    def hides(self) -> bool:
        """Whether a row may be left without any key."""
        return self.key_bias is not None or self.span_bias is not None

    def then(self, other: "WeightEdits") -> "WeightEdits":
        """Combine with other edits of the same heads.

        Gates and temperatures multiply, biases add up, a pattern replaces an earlier one; two
        windows on one head are refused.
        """
        return WeightEdits(
            gate=_combined(torch.mul, self.gate, other.gate),
            key_bias=_combined(torch.add, self.key_bias, other.key_bias),
            temperature=_combined(torch.mul, self.temperature, other.temperature),
            pattern=_combined(_lay_over, self.pattern, other.pattern),
            **_join_spans(self, other),
            **_join_windows(self, other),
        )

    def to(self, device: object) -> "WeightEdits":
        """Move every field to a device."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: value.to(device) for name, value in tensors.items() if value is not None}
        return replace(self, **moved)


def _combined(
    combine: Callable[[Tensor, Tensor], Tensor], earlier: Tensor | None, later: Tensor | None
) -> Tensor | None:
    if earlier is None or later is None:
        return later if earlier is None else earlier
    return combine(earlier, later)


def _lay_over(earlier: Tensor, later: Tensor) -> Tensor:
    return torch.where(later.isnan(), earlier, later)


def _join_windows(earlier: WeightEdits, later: WeightEdits) -> dict[str, Tensor | None]:
    if earlier.recent is None or later.recent is None:
        chosen = later if earlier.recent is None else earlier
        return {"first": chosen.first, "recent": chosen.recent}
    assert earlier.first is not None
    assert later.first is not None
    if bool(((earlier.recent > 0) & (later.recent > 0)).any()):
        raise InvalidInput("recent: two windows on one head; give one that says what it sees")
    return {
        "first": torch.where(earlier.recent > 0, earlier.first, later.first),
        "recent": torch.maximum(earlier.recent, later.recent),
    }


def _join_spans(earlier: WeightEdits, later: WeightEdits) -> dict[str, Tensor | None]:
    """Number the pairs of spans, so that one table holds the sum of both."""
    if earlier.spans is None or later.spans is None:
        chosen = later if earlier.spans is None else earlier
        return {name: getattr(chosen, name) for name in ("span_bias", "query_spans", "key_spans")}
    # A last row and column of zeros is the place of -1, no span.
    first, second = (
        torch.nn.functional.pad(edits[0], (0, 1, 0, 1)) for edits in (earlier.spans, later.spans)
    )
    joined = first[:, :, None, :, None] + second[:, None, :, None]
    # -1 counts as the last one: the remainder of a negative number is positive.
    queries, keys = (
        left.remainder(first.shape[side]) * second.shape[side] + right.remainder(second.shape[side])
        for side, left, right in zip((1, 2), earlier.spans[1:], later.spans[1:], strict=True)
    )
    table = joined.flatten(1, 2).flatten(2, 3)
    return {"span_bias": table, "query_spans": queries, "key_spans": keys}


def expect(name: str, tensor: Tensor | None, sizes: tuple[tuple[int, ...], ...]) -> None:
    """Refuse a tensor unless every dim has one of the sizes that it may have."""
    if tensor is None:
        return
    fits = tensor.ndim == len(sizes) and all(
        size in allowed for size, allowed in zip(tensor.shape, sizes, strict=True)
    )
    if not fits:
        choices = ", ".join(" or ".join(map(str, dict.fromkeys(allowed))) for allowed in sizes)
        raise InvalidInput(f"{name}: shape {tuple(tensor.shape)}; give ({choices})")

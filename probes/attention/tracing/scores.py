"""Symbolic attention scores, from the product of queries and keys to the head outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headscope.probes.attention.tracing.mask import (
    Mask,
    MaskRule,
    check_least,
    dtype_of,
    least,
    read,
)
from headscope.probes.attention.tracing.symbolic_tensor import SymbolicTensor, Unknown

UNSEEN = MaskRule()


@dataclass(frozen=True, eq=False)
class Attention:
    """Traced attention: softmax(scale · q·k + bias) over allowed keys, times values.

    Or, with ``sigmoid``, the sigmoid of each score on its own.

    Queries and keys are (batch, head, position, size), or (batch · head, position, size) until
    the scores are seen with four dims; so is the bias.
    """

    query: Tensor
    key: Tensor
    scale: float = 1.0
    bias: Tensor | None = None
    rule: MaskRule = UNSEEN
    value: Tensor | None = None
    sigmoid: bool = False

    def times(self, factor: float) -> Attention:
        """Scale all scores."""
        if factor <= 0:
            raise Unknown(f"mul: its scores are multiplied by {factor}, which is not known")
        bias = None if self.bias is None else self.bias * factor
        return replace(self, scale=self.scale * factor, bias=bias)

    def plus(self, bias: Tensor) -> Attention:
        """Add a bias, which may hide keys."""
        hidden = bias <= least(bias.dtype)
        attention = self
        if bool(hidden.any()):
            attention = attention.masked_by(read(~hidden))
            bias = bias.masked_fill(hidden, 0.0)
        if not bool(bias.any()):
            return attention
        bias = bias.float()
        if attention.bias is not None:
            bias = bias + attention.bias
        return replace(attention, bias=bias)

    def masked_by(self, rule: MaskRule) -> Attention:
        """Hide keys."""
        return replace(self, rule=self.rule.both(rule))

    def parted(self, batch: int, heads: int) -> Attention:
        """Part the dim of all heads of all prompts."""

        def part(tensor: Tensor) -> Tensor:
            if tensor.shape[0] not in (1, batch * heads):
                raise Unknown(f"view: a bias of shape {tuple(tensor.shape)} is not known")
            broadcast = tensor.shape[0] == 1
            return tensor[None] if broadcast else tensor.reshape(batch, heads, *tensor.shape[1:])

        bias = None if self.bias is None else part(self.bias[(None,) * (3 - self.bias.ndim)])
        query, key = (
            tensor.reshape(batch, heads, *tensor.shape[1:]) for tensor in (self.query, self.key)
        )
        return replace(self, query=query, key=key, bias=bias)


Receive = Callable[[Attention], Tensor]


class Scores(SymbolicTensor):
    """Scores that a module has made, or the weights of them."""

    rank = 1
    attention: Attention
    receive: Receive
    softened: bool
    viewed: bool

    @staticmethod
    def of(
        attention: Attention,
        receive: Receive,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        softened: bool = False,
    ) -> Scores:
        """Create scores; their weights times values return the result of `receive`."""
        scores = Scores(shape, dtype, attention.query.device)
        scores.attention, scores.receive, scores.softened = attention, receive, softened
        scores.viewed = False
        return scores

    @property
    def kind(self) -> str:  # type: ignore[override]
        """Return the name for an error message."""
        return "its weights" if self.softened else "its scores"

    def _next(self, attention: Attention | None = None, **changes: Any) -> Scores:
        attention = self.attention if attention is None else attention
        properties = {name: getattr(self, name) for name in ("shape", "dtype", "softened")}
        return Scores.of(attention, self.receive, **(properties | changes))

    def become(self, other: SymbolicTensor) -> Scores:
        """Change in place, which no other view of the same scores would see."""
        if not isinstance(other, Scores) or self.viewed:
            raise Unknown(f"{self.kind} are changed in place and seen twice, which is not known")
        self.attention = other.attention
        return self

    def _view(self, shape: list[int], attention: Attention | None = None) -> Scores:
        view = self._next(attention, shape=tuple(shape))
        self.viewed = view.viewed = True
        return view

    def _refuse_weights(self, step: str) -> None:
        if self.softened:
            raise Unknown(f"{step}: its weights are changed after the softmax, which is not known")

    def do_mul(self, left: Any, other: Any) -> Scores:
        """Multiply by a number."""
        self._refuse_weights("mul")
        return self._next(self.attention.times(_number(other if self.same(left) else left)))

    def do_div(self, left: Any, other: Any) -> Scores:
        """Divide by a number."""
        self._refuse_weights("div")
        if not self.same(left):
            raise Unknown("div: something is divided by its scores, which is not known")
        return self._next(self.attention.times(1.0 / _number(other)))

    def do_add(self, left: Any, other: Any) -> Scores:
        """Add a mask or a bias."""
        self._refuse_weights("add")
        term = other if self.same(left) else left
        if isinstance(term, Mask) and term.form == "added":
            masked = self.attention.masked_by(term.rule)
            return self._next(masked if term.bias is None else masked.plus(term.bias))
        if isinstance(term, int | float):
            term = torch.tensor(float(term), device=self.device)
        if not isinstance(term, Tensor) or isinstance(term, SymbolicTensor):
            raise Unknown("add: its scores get a term that is not known")
        joined = self.ndim < self.attention.query.ndim
        if joined or np.broadcast_shapes(term.shape, self.shape) != self.shape:
            raise Unknown(f"add: a bias of shape {tuple(term.shape)} is not known")
        return self._next(self.attention.plus(term[(None,) * (self.ndim - term.ndim)]))

    def do_sub(self, left: Any, other: Any) -> Scores:
        """Subtract a number or a bias."""
        if not self.same(left) or isinstance(other, SymbolicTensor):
            raise Unknown("sub: its scores are taken away, which is not known")
        return self.do_add(self, -other)

    def do_where(self, mask: Any, scores: Any, least: Any) -> Scores:
        """Keep the scores where a key is seen."""
        self._refuse_weights("where")
        check_least(least, self.dtype)
        if not self.same(scores):
            raise Unknown("where: its scores are chosen in a way that is not known")
        return self._next(self.attention.masked_by(_rule(mask, "seen")))

    def do_masked_fill(self, scores: Any, hidden: Any, value: Any) -> Scores:
        """Set hidden keys to the least number."""
        self._refuse_weights("masked_fill")
        check_least(value, self.dtype)
        return self._next(self.attention.masked_by(_rule(hidden, "hidden")))

    def do_view(self, scores: Any, *sizes: Any) -> Scores:
        """Part batch and head, or join them."""
        shape = list(sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes)
        size_given = torch.Size(size for size in shape if size != -1).numel()
        shape = [self.numel() // size_given if size == -1 else size for size in shape]
        if shape == list(self.shape):
            return self
        if self.ndim == 3 and len(shape) == 4 and shape[2:] == list(self.shape[1:]):
            attention = self.attention
            if attention.query.ndim == 3:
                attention = attention.parted(shape[0], shape[1])
            if list(attention.query.shape[:2]) == shape[:2]:
                return self._view(shape, attention)
        if self.ndim == 4 and shape == [self.shape[0] * self.shape[1], *self.shape[2:]]:
            return self._view(shape)
        raise Unknown(f"view: {self.kind} are seen as {tuple(shape)}, which is not known")

    def do_to(self, scores: Any, *kinds: Any, **options: Any) -> Scores:
        """Change the type; our weights are float32 whatever it is."""
        if not self.same(scores):
            raise Unknown("to: a tensor takes the type of its scores, which is not known")
        dtype = dtype_of(*kinds, **options)
        return self if dtype in (None, self.dtype) else self._next(dtype=dtype)

    def do_expand_as(self, mask: Any, scores: Any) -> Tensor:
        """Spread a mask over the shape of the scores."""
        if isinstance(mask, SymbolicTensor):
            raise Unknown("expand_as: its scores are spread, which is not known")
        return mask.expand(*self.shape)  # type: ignore[no-any-return]

    def do_max(self, scores: Any, bound: Any) -> Scores:
        """Return it unchanged: what is raised to the least number is hidden anyway."""
        self._refuse_weights("max")
        check_least(bound, self.dtype)
        return self

    def do_gather(self, product: Any, dim: Any, index: Any) -> Tensor:
        """Create a gathered product: of positions, from which a bias is made."""
        attention = self.attention
        touched = attention.bias is not None or attention.rule is not UNSEEN or self.softened
        if touched or not self.same(product):
            raise Unknown(f"gather: {self.kind} are picked from, which is not known")
        product_of_positions = (attention.query @ attention.key.transpose(-1, -2)) * attention.scale
        return product_of_positions.gather(dim, index)

    def do_contiguous(self, scores: Any) -> Scores:
        """Return it unchanged."""
        return self

    def do_softmax(
        self, scores: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None
    ) -> Scores:
        """Convert to weights by a softmax over the keys."""
        self._refuse_weights("softmax")
        if isinstance(_stacklevel, torch.dtype):
            dtype = _stacklevel
        if dim not in (-1, self.ndim - 1):
            raise Unknown(f"softmax: over dim {dim} of its scores, which is not known")
        return self._next(softened=True, dtype=dtype or self.dtype)

    def do_sigmoid(self, scores: Any) -> Scores:
        """Convert to weights by a sigmoid."""
        self._refuse_weights("sigmoid")
        return self._next(replace(self.attention, sigmoid=True), softened=True)

    def do_dropout(
        self, weights: Any, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Scores:
        """Return it unchanged: dropout is off in a capture."""
        if training and p:
            raise Unknown("dropout: its scores get dropout; call model.eval() first")
        return self

    def do_matmul(self, weights: Any, values: Any) -> Tensor:
        """Multiply with the values: the attention is complete."""
        if not self.same(weights) or not self.softened or isinstance(values, SymbolicTensor):
            raise Unknown("matmul: its scores are multiplied in a way that is not known")
        return self.through(values)

    def through(self, values: Tensor) -> Tensor:
        """Pass the complete attention on, and return its outputs."""
        if self.attention.query.ndim != 4 or values.ndim != self.ndim:
            raise Unknown("matmul: its scores have no dims of their own for batch and head")
        value = values
        if values.ndim == 3:
            value = values.reshape(*self.attention.query.shape[:2], *values.shape[1:])
        z = self.receive(replace(self.attention, value=value)).to(self.dtype)
        return z if self.ndim == 4 else z.flatten(0, 1)


def _number(value: Any) -> float:
    if isinstance(value, SymbolicTensor) or (isinstance(value, Tensor) and value.numel() != 1):
        raise Unknown("mul: its scores are multiplied by a tensor, which is not known")
    return float(value)


def _rule(mask: Any, form: str) -> MaskRule:
    if isinstance(mask, Mask):
        if mask.form != form:
            raise Unknown(f"{form}: a mask says the opposite, which is not known")
        return mask.rule
    if not isinstance(mask, Tensor) or isinstance(mask, SymbolicTensor) or mask.dtype != torch.bool:
        raise Unknown(f"{form}: a mask that is not boolean is not known")
    return read(mask if form == "seen" else ~mask)

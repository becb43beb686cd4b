"""Trace attention modules that compute their weights themselves, outside the interface."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from headscope.kernels.errors import UnsupportedModel
from headscope.probes.attention.tracing.mask import MaskRule, read
from headscope.probes.attention.tracing.scores import Attention, Scores
from headscope.probes.attention.tracing.symbolic_tensor import SymbolicTensor, Unknown, name_of

Receive = Callable[[nn.Module, Attention], Tensor]


@contextmanager
def trace_attention(root: nn.Module, receive: Receive) -> Iterator[None]:
    """Pass every attention of a model to `receive`, with the module that computes it.

    Inside a module whose class is named Attention, the product of queries and keys is not made;
    it stands as `Scores` until it meets the values, and `receive` answers with the heads' outputs.
    """
    tracer = _Tracer(root, receive)
    with ExitStack() as stack:
        for part in root.modules():
            if "Attention" in type(part).__name__:
                stack.enter_context(part.register_forward_pre_hook(tracer.enter))
                stack.enter_context(part.register_forward_hook(tracer.leave, always_call=True))
        with tracer:
            yield


class _Tracer(TorchFunctionMode):
    def __init__(self, root: nn.Module, receive: Receive) -> None:
        super().__init__()
        self.root, self.receive = root, receive
        self.inside: list[nn.Module] = []
        # Hooks fire in every thread that runs the model, and this mode in its own alone.
        self.thread = threading.get_ident()

    def enter(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() == self.thread:
            self.inside.append(module)

    def leave(self, module: nn.Module, args: Any, result: Any) -> None:
        if threading.get_ident() == self.thread:
            self.inside.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        begins = BEGINNINGS.get(name_of(func)) if self.inside else None
        try:
            if begins is not None and not any(isinstance(value, SymbolicTensor) for value in args):
                module = self.inside[-1]
                started = begins(lambda traced: self.receive(module, traced), *args, **kwargs)
                if started is not None:
                    return started
            return func(*args, **kwargs)
        except Unknown as unknown:
            name = type(self.inside[-1] if self.inside else self.root).__name__
            raise UnsupportedModel(
                f"model: {name} is outside transformers' AttentionInterface and cannot be followed "
                f"at {unknown}; this model is refused"
            ) from unknown


def _product(receive: Any, left: Tensor, right: Tensor) -> Scores | None:
    """Treat a product of two batches of matrices as that of queries and keys."""
    if left.ndim != right.ndim or left.ndim not in (3, 4):
        return None
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    attention = Attention(query=left, key=right.transpose(-1, -2))
    shape = (*batch, left.shape[-2], right.shape[-1])
    return Scores.of(attention, receive, shape, left.dtype)


def _added_product(
    receive: Any, bias: Tensor, batch1: Tensor, batch2: Tensor, beta: Any = 1, alpha: Any = 1
) -> Scores:
    """Handle ``baddbmm``: beta · bias + alpha · product."""
    attention = Attention(query=batch1, key=batch2.transpose(-1, -2)).times(float(alpha))
    if beta:
        attention = attention.plus(bias * beta)
    shape = (*batch1.shape[:2], batch2.shape[2])
    return Scores.of(attention, receive, shape, batch1.dtype)


def _attend_at_once(
    receive: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Handle ``scaled_dot_product_attention``."""
    if query.ndim != 4:
        raise Unknown(f"scaled_dot_product_attention: its queries have {query.ndim} dims")
    if dropout_p:
        raise Unknown("dropout: it asks for dropout; call model.eval() first")
    if is_causal and query.shape[2] != key.shape[2]:
        raise Unknown("is_causal: torch counts it from the first key, which is not known")
    factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
    shape = (*query.shape[:3], key.shape[2])
    attention = Attention(query, key, factor, rule=MaskRule(causal=is_causal))
    scores = Scores.of(attention, receive, shape, query.dtype)
    boolean = isinstance(attn_mask, Tensor) and attn_mask.dtype == torch.bool
    if boolean and not isinstance(attn_mask, SymbolicTensor):
        scores = Scores.of(attention.masked_by(read(attn_mask)), receive, shape, query.dtype)
    elif attn_mask is not None:
        scores = scores.do_add(scores, attn_mask)
    return scores.do_softmax(scores, dim=-1).through(value)


BEGINNINGS: dict[str, Callable[..., Any]] = {
    "matmul": _product,
    "baddbmm": _added_product,
    "scaled_dot_product_attention": _attend_at_once,
}

"""Hooks on the residual stream before each block and after the last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from headscope.kernels.errors import UnsupportedModel
from headscope.probes.models import encoder_decoder
from headscope.probes.models.encoder_decoder import SELF

if TYPE_CHECKING:
    from headscope.probes.models.model import Model


@contextmanager
def watching(model: Model, take: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
    """Pass the residual stream before each block, and after the last, to ``take(boundary, it)``.

    What ``take`` returns, unless it is None, goes on in place of the stream.
    """
    parts = blocks(model)

    def enter(at: int) -> Any:
        def hook(part: nn.Module, args: Any, kwargs: Any) -> Any:
            other = take(at, args[0] if args else kwargs["hidden_states"])
            if other is None:
                return None
            if args:
                return (other, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": other}

        return hook

    def leave(part: nn.Module, args: Any, result: Any) -> Any:
        bare = isinstance(result, Tensor)
        other = take(len(parts), result if bare else result[0])
        return other if other is None or bare else (other, *result[1:])

    with ExitStack() as stack:
        for at, part in enumerate(parts):
            stack.enter_context(part.register_forward_pre_hook(enter(at), with_kwargs=True))
        stack.enter_context(parts[-1].register_forward_hook(leave))
        yield


def blocks(model: Model) -> list[nn.Module]:
    """Find the blocks of a model: the entries of its lists of modules that hold attention."""
    if model.attention != SELF:
        return list(encoder_decoder.blocks(model.module, model.attention))
    by_layer: dict[int, nn.Module] = {}
    for group in model.module.modules():
        if not isinstance(group, nn.ModuleList):
            continue
        for block in group:
            numbers = [getattr(part, "layer_idx", None) for part in block.modules()]
            layers = {number for number in numbers if isinstance(number, int)}
            if len(layers) == 1:
                by_layer.setdefault(layers.pop(), block)
    if not by_layer:
        # Encoders of images do not number their attention.
        by_layer = dict(enumerate(encoder_decoder.outermost(model.base)))
    if sorted(by_layer) != list(range(model.layers)):
        raise UnsupportedModel(
            f"keep: the blocks of {model.name} are not found, so not its residual stream"
        )
    return [by_layer[layer] for layer in range(model.layers)]

"""The call of a module, which can be made again with another residual stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree


@dataclass(frozen=True)
class ModuleCall:
    """What a module was called with beside the stream, and what it gave.

    ``by_prompt`` are the numbers of the arguments, flat, that have as many rows as there are
    prompts, such as Bloom's biases of positions: one prompt's are repeated for another stream.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    by_prompt: tuple[int, ...] = ()

    @classmethod
    def beside_the_stream(
        cls, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> ModuleCall:
        """Keep a call without its stream."""
        if "hidden_states" in kwargs:
            return cls(args, {**kwargs, "hidden_states": None}, result)
        return cls((None, *args[1:]), kwargs, result)

    def again(self, module: nn.Module, stream: Tensor) -> Any:
        """Call the module on another stream."""
        (args, kwargs), times = (self.args, self.kwargs), len(stream)
        if self.by_prompt and times > 1:
            leaves, form = _pytree.tree_flatten((args, kwargs))
            for at in self.by_prompt:
                leaves[at] = leaves[at].repeat(times, *[1] * (leaves[at].ndim - 1))
            args, kwargs = _pytree.tree_unflatten(leaves, form)
        if "hidden_states" in kwargs:
            return module(*args, **{**kwargs, "hidden_states": stream})
        return module(stream, *args[1:], **kwargs)

    def compared(self, twice: ModuleCall) -> ModuleCall:
        """Return the call with ``by_prompt``, from that with the same prompt a second time."""
        leaves, leaves_of_two = (
            _pytree.tree_leaves((call.args, call.kwargs)) for call in (self, twice)
        )
        by_prompt = tuple(
            at
            for at, (leaf, doubled) in enumerate(zip(leaves, leaves_of_two, strict=True))
            if isinstance(leaf, Tensor) and leaf.ndim and len(doubled) == 2 * len(leaf)
        )
        return ModuleCall(self.args, self.kwargs, self.result, by_prompt)


@contextmanager
def keeping(blocks: Sequence[nn.Module]) -> Iterator[dict[nn.Module, ModuleCall]]:
    """Keep the calls of blocks and of all parts of them."""
    calls: dict[nn.Module, ModuleCall] = {}

    def keep(part: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        calls[part] = ModuleCall.beside_the_stream(args, kwargs, result)

    parts = [part for block in blocks for part in block.modules()]
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(part.register_forward_hook(keep, with_kwargs=True))
        yield calls

"""Swap a TransformerBridge's attention for the Hugging Face model's own, for a while.

A bridge computes attention itself, eagerly. Inside `unwrapped` every attention block is the
Hugging Face module again, so that it asks for its attention function by name; the projections
inside it stay wrapped, so hooks on the residual stream, the MLP, ``hook_z`` and (where the
projections are separate) ``hook_q``, ``hook_k``, ``hook_v`` fire as before.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from headscope.kernels.errors import InvalidInput


def is_bridge(value: object) -> bool:
    """Say whether a value is a TransformerBridge, without importing transformer_lens."""
    return any(
        kind.__module__.startswith("transformer_lens.") and kind.__name__ == "TransformerBridge"
        for kind in type(value).__mro__
    )


@contextmanager
def unwrapped(bridge: Any) -> Iterator[None]:
    """Put each attention module of the Hugging Face model back in its block, for a while."""
    places = list(_children(bridge.original_model, _is_attention))
    swaps = [(parent, name, part, part.original_component) for parent, name, part in places]
    parts = {id(part): part for _, _, part in places}.values()
    for part in parts:
        swaps.extend(_projections(part))
        _refuse_silent_hooks(bridge, part)
    with ExitStack() as stack:
        for parent, name, before, after in swaps:
            stack.callback(parent._modules.__setitem__, name, before)
            parent._modules[name] = after
        for part in parts:
            for handle in _carry_hooks(part):
                stack.enter_context(handle)
        yield


def _children(
    module: nn.Module, matches: Callable[[nn.Module | None], bool]
) -> Iterator[tuple[nn.Module, str, Any]]:
    for parent in list(module.modules()):
        for name, part in list(parent._modules.items()):
            if matches(part):
                yield parent, name, part


def _projections(part: Any) -> list[tuple[nn.Module, str, Any, Any]]:
    """Find projections that the bridge wraps beside the module, such as the output's of GPT-2."""
    wraps = {
        id(wrapper.original_component): wrapper
        for wrapper in part.submodules.values()
        if getattr(wrapper, "original_component", None) is not None
    }
    return [
        (parent, name, raw, wraps[id(raw)])
        for parent, name, raw in _children(
            part.original_component, lambda wrapper: id(wrapper) in wraps
        )
        if parent is not wraps[id(raw)]
    ]


def _carry_hooks(part: Any) -> tuple[RemovableHandle, ...]:
    """Let what goes into the attention, and comes out of it, pass the hooks of the bridge."""

    def enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (part.hook_in(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": part.hook_in(kwargs["hidden_states"])}

    def leave(module: nn.Module, args: Any, result: Any) -> Any:
        return (part.hook_out(result[0]), *result[1:])

    inner = part.original_component
    return (
        inner.register_forward_pre_hook(enter, with_kwargs=True),
        inner.register_forward_hook(leave),
    )


def _is_attention(part: nn.Module | None) -> bool:
    return any(kind.__name__ == "AttentionBridge" for kind in type(part).__mro__)


def _refuse_silent_hooks(bridge: Any, part: Any) -> None:
    """A hook that would be skipped in silence is an intervention that did not happen."""
    alive = {id(inner) for inner in part.original_component.modules()}
    alive |= {id(part.hook_in), id(part.hook_out)}
    for _, _, _, wrapper in _projections(part):
        alive |= {id(inner) for inner in wrapper.modules()}
    for name, point in part.named_modules():
        hooked = getattr(point, "fwd_hooks", None) or getattr(point, "bwd_hooks", None)
        if hooked and id(point) not in alive:
            full = next((key for key, value in bridge.hook_dict.items() if value is point), name)
            raise InvalidInput(
                f"{full}: this hook of the TransformerBridge cannot fire in a fused attention; "
                "remove it (bridge.reset_hooks()) or use headscope's edits"
            )

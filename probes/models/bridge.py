"""Swap a TransformerBridge's attention for the Hugging Face model's own, for a while.

A bridge computes attention itself, eagerly. Inside `unwrapped` every attention block is the
Hugging Face module again, so that it asks for its attention function by name; the projections
inside it stay the bridge's, so hooks on the residual stream, the MLP, ``hook_z``, ``hook_q``,
``hook_k`` and ``hook_v`` fire as before, and weights that the bridge has processed are those of
the pass.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import ref

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from headscope.kernels.errors import InvalidInput
from headscope.probes.models.joint_projection import JointProjection, answered, joint_of

# The parameters of a bridge's attention, held weakly: those that were replaced can go.
AttentionWeights = tuple[ref[Tensor], ...]


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


@contextmanager
def assembled(bridge: Any) -> Iterator[None]:
    """Let the Hugging Face model hold the weights that the bridge computes with, each once.

    They can be read there; it does not run.
    """
    with unwrapped(bridge):
        for parent, name, joint in list(_children(bridge.original_model, _is_joint)):
            parent._modules[name] = joint.assembled()
        yield


def attention_weights(bridge: Any) -> AttentionWeights:
    """Note which parameters the attention modules of a bridge have."""
    parts = {id(part): part for _, _, part in _children(bridge.original_model, _is_attention)}
    return tuple(ref(weight) for part in parts.values() for weight in part.parameters())


def check_same(bridge: Any, known: AttentionWeights) -> None:
    """Refuse a bridge whose attention has been given other parameters than those noted."""
    now = attention_weights(bridge)
    same = (one() is other() for one, other in zip(now, known, strict=False))
    if len(now) != len(known) or not all(same):
        raise InvalidInput(
            "model: weights of the TransformerBridge were replaced after load_model "
            "(enable_compatibility_mode and process_weights do that); call load_model(bridge) "
            "again"
        )


def _children(
    module: nn.Module, matches: Callable[[nn.Module | None], bool]
) -> Iterator[tuple[nn.Module, str, Any]]:
    for parent in list(module.modules()):
        for name, part in list(parent._modules.items()):
            if matches(part):
                yield parent, name, part


def _projections(part: Any) -> list[tuple[nn.Module, str, Any, Any]]:
    """Find projections that the bridge has beside the module, such as the output's of GPT-2."""
    wraps = {
        id(wrapper.original_component): wrapper
        for wrapper in part.submodules.values()
        if getattr(wrapper, "original_component", None) is not None
    }
    joint = answered(part)
    if joint is not None:
        wraps[id(joint_of(part))] = joint
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


def _is_joint(part: nn.Module | None) -> bool:
    return isinstance(part, JointProjection)


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

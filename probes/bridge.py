"""A TransformerBridge seen through the seam: its attention swapped for the model's own.

A bridge computes attention itself, eagerly. Inside `unwrapped` every attention block is the
Hugging Face module again, so that it asks for its attention function by name; the projections
inside it stay wrapped, so hooks on the residual stream, the MLP, ``hook_z`` and (where the
projections are separate) ``hook_q``, ``hook_k``, ``hook_v`` fire as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from headscope.kernels.refusal import Refused


def is_bridge(value: object) -> bool:
    """Say whether a value is a TransformerBridge, without importing transformer_lens."""
    return any(
        kind.__module__.startswith("transformer_lens.") and kind.__name__ == "TransformerBridge"
        for kind in type(value).__mro__
    )


@contextmanager
def unwrapped(bridge: Any) -> Iterator[None]:
    """Put each attention module of the Hugging Face model back in its block, for a while.

    Raises
    ------
    Refused
        When a hook is registered that cannot fire here, naming it.
    """
    swaps = [
        (parent, name, part)
        for parent in list(bridge.original_model.modules())
        for name, part in list(parent._modules.items())
        if _is_attention(part)
    ]
    for _, _, part in swaps:
        _refuse_silent_hooks(bridge, part)
    try:
        for parent, name, part in swaps:
            parent._modules[name] = part.original_component
        yield
    finally:
        for parent, name, part in swaps:
            parent._modules[name] = part


def _is_attention(part: nn.Module | None) -> bool:
    return any(kind.__name__ == "AttentionBridge" for kind in type(part).__mro__)


def _refuse_silent_hooks(bridge: Any, part: Any) -> None:
    """A hook that would be skipped in silence is an intervention that did not happen."""
    alive = {id(inner) for inner in part.original_component.modules()}
    for name, point in part.named_modules():
        hooked = getattr(point, "fwd_hooks", None) or getattr(point, "bwd_hooks", None)
        if hooked and id(point) not in alive:
            full = next((key for key, value in bridge.hook_dict.items() if value is point), name)
            raise Refused(
                f"{full}: this hook of the TransformerBridge cannot fire in a fused attention; "
                "remove it (bridge.reset_hooks()) or use headscope's edits"
            )

"""What modules give instead of computing: a constant, no outputs, or the end of the pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from headscope.probes.attention.interface import AttentionCall


class Reached(Exception):  # noqa: N818 - no error: it ends a pass that has done its work
    """Carry out of a pass what was looked for in it.

    Attributes
    ----------
    value
        What was reached.
    """

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def stopping(*args: Any, **kwargs: Any) -> Any:
    """End the pass at a module, with the stream that it was given."""
    raise Reached(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])


def constant(values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Give the same numbers whatever the module is called with."""
    return values


def no_outputs(call: AttentionCall) -> Tensor:
    """Give zeros as the outputs of all heads."""
    return call.value.new_zeros(*call.query.shape[:3], call.value.shape[3])


def width(module: Any) -> int:
    """Return how many numbers a linear layer or a norm gives for every position."""
    weight: Tensor = module.weight
    return int(weight.shape[1] if type(module).__name__ == "Conv1D" else weight.shape[0])

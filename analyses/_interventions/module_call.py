"""The call of a module, which can be made again with another residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class ModuleCall:
    """The other arguments of a module's call, beside the stream, and its result."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    def again(self, module: nn.Module, stream: Tensor) -> Any:
        """Call the module on another stream."""
        if "hidden_states" in self.kwargs:
            return module(*self.args, **{**self.kwargs, "hidden_states": stream})
        return module(stream, *self.args[1:], **self.kwargs)

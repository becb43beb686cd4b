"""Input device and weights of a model, also where accelerate has spread or offloaded it."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from headscope.kernels.errors import InvalidInput


def input_device(module: nn.Module) -> torch.device:
    """Find where a model takes its tokens: the device of its input embedding."""
    model: Any = module
    part = model
    if hasattr(model, "get_input_embeddings"):
        with suppress(NotImplementedError):
            part = model.get_input_embeddings() or model
    for hook in _hooks(part):
        # An offloaded weight lies nowhere; it is brought to this device when it is needed.
        device = getattr(hook, "execution_device", None)
        if device is not None:
            return torch.device(device)
    weight: Tensor = next(part.parameters(), next(module.parameters()))
    return weight.device


def weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight once, by name; offloaded ones are read one after the other."""
    # Offloaded, what is tied looks like two weights.
    tied = set(getattr(module, "all_tied_weights_keys", None) or ())
    counted: set[int] = set()
    for name, weight in module.named_parameters():
        if weight.is_meta:
            if name not in tied:
                yield name, _offloaded(module, name)
        elif weight.data_ptr() not in counted:
            counted.add(weight.data_ptr())
            yield name, weight


def _offloaded(module: nn.Module, name: str) -> Tensor:
    parts = name.split(".")
    # The hook that holds a weight is on its module, or on one around it.
    for depth in range(len(parts) - 1, -1, -1):
        inner = ".".join(parts[depth:])
        for hook in _hooks(module.get_submodule(".".join(parts[:depth]))):
            weights_map = getattr(hook, "weights_map", None)
            if weights_map is not None:
                weight: Tensor = weights_map[inner]
                return weight
    raise InvalidInput(
        f"model: weight {name} has no values (device meta); load the model with weights"
    )


def _hooks(part: nn.Module) -> list[Any]:
    hook = getattr(part, "_hf_hook", None)
    return [] if hook is None else [hook, *getattr(hook, "hooks", ())]

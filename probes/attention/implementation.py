"""Switch the attention implementation of a model's configs for a while, dropout off."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedConfig


@contextmanager
def using(module: nn.Module, implementation: str) -> Iterator[None]:
    """Switch every config of a module to an attention implementation, dropout off, and back."""
    configs = _configs(module)
    before = [(config, config._attn_implementation) for config in configs]
    training = [part for part in module.modules() if part.training]
    try:
        for config in configs:
            config._attn_implementation_internal = implementation
        for part in training:
            part.training = False
        yield
    finally:
        for config, name in before:
            config._attn_implementation_internal = name
        for part in training:
            part.training = True


def _configs(module: nn.Module) -> list[Any]:
    configs: dict[int, Any] = {}
    queue = [getattr(part, "config", None) for part in module.modules()]
    while queue:
        config = queue.pop()
        if isinstance(config, PreTrainedConfig) and id(config) not in configs:
            configs[id(config)] = config
            queue.extend(getattr(config, name, None) for name in config.sub_configs)
    return list(configs.values())

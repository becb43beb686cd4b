"""Constructed models: transformers with hand-set weights, whose circuit is known exactly.

Each is an ordinary GPT-2 that `load_model` knows by name. The module that builds it also holds its
task, and the heads and edges of its circuit; the folder is the registry.
"""

import importlib
import pkgutil
from types import ModuleType

from headscope.kernels.errors import InvalidInput

PREFIX = "headscope/constructed-"
_OTHERS = ("hand_set", "known_circuit")


def names() -> list[str]:
    """Names that `load_model` knows the constructed models by, without importing them.

    >>> "headscope/constructed-ioi" in names()
    True
    """
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [f"{PREFIX}{name.replace('_', '-')}" for name in modules if name not in _OTHERS]


def module(name: str) -> ModuleType:
    """Return the module that builds a constructed model and knows its circuit."""
    if name not in names():
        raise InvalidInput(f"model: no {name!r} is constructed; there is {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name.removeprefix(PREFIX).replace('-', '_')}")

"""Probes: models, captures, interventions, tasks and their storage.

Importing this package, and listing the tasks in it, imports neither torch nor transformers: each
name is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headscope.probes.capturing.attention_pattern import pattern
    from headscope.probes.capturing.capture import capture, plan
    from headscope.probes.capturing.generation import generate
    from headscope.probes.models.checkpoints import checkpoints
    from headscope.probes.models.loading import load_model
    from headscope.probes.models.model import Model
    from headscope.probes.models.pair import Pair
    from headscope.probes.prompts import tasks

__all__ = [
    "Model",
    "Pair",
    "capture",
    "checkpoints",
    "generate",
    "load_model",
    "pattern",
    "plan",
    "tasks",
]

_MODULES = {
    "Model": "models.model",
    "Pair": "models.pair",
    "capture": "capturing.capture",
    "checkpoints": "models.checkpoints",
    "generate": "capturing.generation",
    "load_model": "models.loading",
    "pattern": "capturing.attention_pattern",
    "plan": "capturing.capture",
}


def __getattr__(name: str) -> Any:
    if name == "tasks":
        return importlib.import_module("headscope.probes.prompts.tasks")
    if name in _MODULES:
        return getattr(importlib.import_module(f"headscope.probes.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""Screens of the dashboard: one module each, and the folder is the registry.

A screen has ``TITLE``, its name in the navigation, and ``draw()``; its address is the name of the
module. It may have ``opens(folder)``, true where the dashboard begins with it.
"""

import importlib
import pkgutil
from types import ModuleType


def names() -> list[str]:
    """List the screens, without importing any.

    >>> names()
    ['heads', 'timelines']
    """
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """Import a screen."""
    return importlib.import_module(f"{__name__}.{name}")

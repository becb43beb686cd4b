"""Screens of the dashboard: one module each, and the folder is the registry.

A screen has ``TITLE``, its name in the navigation, and ``draw()``; its address is the name of the
module. It may have ``opens(folder)``, true where the dashboard begins with it.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlencode

# Opens where no other screen says that the folder is its own.
FIRST = "heads"


def names() -> list[str]:
    """List the screens, without importing any.

    >>> names()
    ['analyses', 'heads', 'runs', 'timelines']
    """
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """Import a screen."""
    return importlib.import_module(f"{__name__}.{name}")


def pages(folder: Path | None) -> dict[str, Any]:
    """Make the pages of the navigation for what the dashboard was started on, by name."""
    import streamlit as st

    modules = {name: load(name) for name in names()}
    opening = (
        name
        for name, screen in modules.items()
        if hasattr(screen, "opens") and screen.opens(folder)
    )
    first = next(opening, FIRST)
    return {
        name: st.Page(
            modules[name].draw, title=modules[name].TITLE, url_path=name, default=name == first
        )
        for name in sorted(modules, key=lambda name: name != first)
    }


def link(name: str, label: str, parameters: Mapping[str, Any], icon: str | None = None) -> None:
    """Draw a link to a screen, with what its address carries; it opens beside this one."""
    import streamlit as st

    from headscope.app.dashboard import cache

    # In a session of its own: what this one has picked before would win over the address.
    page = pages(cache.folder())[name]
    st.link_button(label, f"./{page.url_path}?{urlencode(parameters)}", icon=icon)

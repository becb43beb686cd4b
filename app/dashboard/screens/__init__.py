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
    ['analyses', 'attribution', 'circuit', 'compare', 'heads', 'importance', 'runs', 'timelines']
    """
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """Import a screen."""
    return importlib.import_module(f"{__name__}.{name}")


def pages(folder: Path | None) -> dict[str, Any]:
    """Return the pages of the navigation, by name, for what the dashboard was started on."""
    modules = {name: load(name) for name in names()}
    opening = (
        name
        for name, screen in modules.items()
        if hasattr(screen, "opens") and screen.opens(folder)
    )
    first = next(opening, FIRST)
    ordered = sorted(modules, key=lambda name: name != first)
    return {name: page(name, default=name == first) for name in ordered}


def page(name: str, *, default: bool = False) -> Any:
    """Return the page of a screen; the default one has the address of the dashboard itself."""
    import streamlit as st

    screen = load(name)
    path = None if default else name
    return st.Page(screen.draw, title=screen.TITLE, url_path=path, default=default)


def link(
    name: str,
    label: str,
    parameters: Mapping[str, Any],
    icon: str | None = None,
    owner: object = None,
) -> None:
    """Draw a link to a screen with fields of its address; within a run the other fields are kept.

    ``owner`` distinguishes it from other links of the screen to the same address.
    """
    import streamlit as st

    from headscope.app.dashboard import cache, state

    to = pages(cache.folder())[name]
    if st.session_state[state.SCREEN] == to.title:  # Streamlit would leave the address as it is
        key = f"link_{id(owner)}_{label}_{urlencode(parameters)}"
        st.button(label, key=key, icon=icon, on_click=state.go, args=(parameters,))
        return
    same_run = st.session_state.get("run") == parameters.get("run")
    query = {**(state.address() if same_run else {}), **parameters}
    st.page_link(to, label=label, icon=icon, query_params=query)

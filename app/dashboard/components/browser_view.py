"""Views that the browser draws by itself; only a pick, or a state for the link, comes back."""

from collections.abc import Callable
from typing import Any

import streamlit as st

from headscope.viz.component.view import View, script, style

# Called whenever the data changes; the view stays, with what the user has hovered or scrolled.
MOUNT = """
const mounted = new WeakMap();
export default function ({ data, parentElement, setTriggerValue }) {
  const on = { pick: (at) => setTriggerValue("pick", at), state: (to) => setTriggerValue("state", to) };
  if (!mounted.has(parentElement)) mounted.set(parentElement, mount(parentElement, data, on));
  const view = mounted.get(parentElement);
  view.show(data.data);
  return () => { view.destroy(); mounted.delete(parentElement); };
}
"""  # noqa: E501
# The screen has headings of its own.
STYLE = ".headscope .title { display: none }"
_component = st.components.v2.component("headscope", js=script() + MOUNT, css=style() + STYLE)


def mount(view: View, key: str, **events: Callable[[Any], None]) -> None:
    """Show a view; ``pick`` is called with a head, ``state`` with how a token view stands."""

    def on_event(event: str) -> Callable[[], None]:
        def answer() -> None:
            value = st.session_state[key][event]
            if value is not None:
                events[event](value)

        return answer

    callbacks: dict[str, Any] = {f"on_{event}_change": on_event(event) for event in events}
    _component(key=key, data={"kind": view.kind, "data": view.data}, **callbacks)

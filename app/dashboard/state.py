"""State of the dashboard, kept in the address: which head, score and prompt is shown."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from headscope.app.dashboard.components.plain import plain
from headscope.viz.component.long_view import MAPS, WIDEST
from headscope.viz.component.token_view import MODES, SCALES

# Of this session: the screen in view; its fields, with what they are where the address is silent;
# what the address says of those that have taken it; and those that others' options depend on.
SCREEN, SHOWN, ADDRESSED, DECIDING = "screen", "shown_fields", "said_fields", "deciding_fields"
# How the token view stands; the browser says so, and no widget has these.
TOKEN_VIEW = ("mode", "scale", "hide", "token")
# The same of a long view: blocks, words to find, and the window.
LONG_VIEW = ("map", "find", "queries", "keys")
MOVES = {"Left": (0, -1), "Right": (0, 1), "Up": (-1, 0), "Down": (1, 0)}


def open_address(screen: str) -> None:
    """Set the widgets from the address: at the start, after a link, or after Back."""
    # Streamlit's own binding of widgets to an address drops it on the way to another screen, and
    # makes an entry of the history for every widget.
    context = get_script_run_ctx()
    back = context is not None and context.is_history_navigation
    if back or st.session_state.get(SCREEN) != screen:
        st.session_state[SCREEN] = screen
        st.session_state[SHOWN], st.session_state[ADDRESSED] = {}, {}
        st.session_state[DECIDING] = set()


def take(
    field: str,
    options: Sequence[Any] | None = None,
    default: Any = ...,
    *,
    decides: bool = False,
) -> None:
    """Set a widget, before it is drawn, from the address, or else to its default.

    ``options`` are its options, the first of which is the default unless another is given; None is
    free text. A list as the default is a widget of several options. The widget keeps its value
    with ``persist_state="session"``; one that is no longer an option, such as
    a head of another run, becomes the default. ``decides`` says that the options of other widgets
    depend on it.
    """
    if default is ...:
        default = options[0] if options else ""
    st.session_state[SHOWN][field] = default
    if decides:
        st.session_state[DECIDING].add(field)
    several = isinstance(default, list)
    if field in st.session_state[ADDRESSED]:
        current = st.session_state.get(field)
        if options is not None and not several and current is not None and current not in options:
            st.session_state[field] = default
        return
    st.session_state[ADDRESSED][field] = st.query_params.get_all(field)
    values = _address_values(field, options)
    st.session_state[field] = values if several else values[-1] if values else default


def _address_values(field: str, allowed: Sequence[Any] | None) -> list[Any]:
    """Read the values of the address, and record those that are not available."""
    values = st.query_params.get_all(field)
    if allowed is None:
        return values
    options = {str(option): option for option in allowed}
    unknown = [value for value in values if value not in options]
    names = list(options)
    shown = ", ".join(names) if len(names) <= 8 else f"{names[0]} to {names[-1]}"
    st.session_state.setdefault("bad_params", []).extend(
        f"The link asks for {field} = {value!r}, which is not here ({shown or 'there is none'}); "
        "showing another."
        for value in unknown
    )
    return [options[value] for value in values if value in options]


def keep_address(*, drawn: bool = True) -> None:
    """Write what is shown to the address: one step of Back for all widgets that changed.

    It is called before the screen is ``drawn``, too: until a change is in the address, Back would
    skip the view that the user goes back from. Where the options of other widgets depend on the
    change, these are drawn first, or the one change would be two steps.
    """
    in_address, shown = st.session_state[ADDRESSED], _shown()
    changed = {field for field, words in shown.items() if words != in_address[field]}
    if changed and (drawn or not changed & st.session_state[DECIDING]):
        st.query_params.update(shown)
        in_address.update(shown)


def address() -> dict[str, list[str]]:
    """Return the address with the latest change of the user."""
    return {field: st.query_params.get_all(field) for field in st.query_params} | _shown()


def _shown() -> dict[str, list[str]]:
    """Write the fields of the screen as an address does: a default that it left out stays out."""
    in_address = st.session_state[ADDRESSED]
    return {
        field: _address_texts(field)
        for field, default in st.session_state[SHOWN].items()
        if in_address[field] or st.session_state.get(field) != default
    }


def _address_texts(field: str) -> list[str]:
    value = st.session_state.get(field)
    values = value if isinstance(value, list) else [value]
    return [str(item) for item in values if item not in (None, "")]


def go(values: Mapping[str, Any]) -> None:
    """Set the fields of a link to the current screen."""
    for field, value in values.items():
        st.session_state[field] = value


def show_warnings() -> None:
    """Show what was wrong with the link, once."""
    for text in st.session_state.pop("bad_params", []):
        st.warning(plain(text), icon=":material/link_off:")


def neighbour(by: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int]:
    """Return the head beside the picked one; at an edge, the picked one itself."""
    at = int(st.session_state["layer"]), int(st.session_state["head"])
    layer, head = (
        min(max(index + step, 0), size - 1) for index, step, size in zip(at, by, shape, strict=True)
    )
    return layer, head


def select_head(layer: int, head: int) -> None:
    """Pick a head.

    Buttons are given the head to go to, not the step: when keys follow each other quickly, the
    browser still sends the position before the last step.
    """
    st.session_state["layer"], st.session_state["head"] = layer, head


def select_clicked(chart: str) -> None:
    """Pick the head that was clicked in a chart; a click on nothing changes nothing."""
    points = st.session_state[chart]["selection"]["points"]
    if points:
        row, column = points[0]["customdata"]
        select_head(int(row), int(column))


def picked_row(table: str, names: Sequence[str]) -> str | None:
    """Return the name of the row that was picked in a table; None where none is."""
    rows = st.session_state[table]["selection"]["rows"]
    return names[rows[0]] if rows and rows[0] < len(names) else None


def token_view(tokens: int) -> dict[str, Any]:
    """Read the state of the token view of so many tokens from the address."""
    allowed: dict[str, Sequence[object]] = {
        "mode": MODES, "scale": SCALES, "hide": (True,), "token": range(tokens)
    }  # fmt: skip
    requested = {field: _address_values(field, options) for field, options in allowed.items()}
    bad = [field for field, values in requested.items() if field in st.query_params and not values]
    if bad:
        st.query_params.update({field: [] for field in bad})
    return {field: values[-1] for field, values in requested.items() if values}


def keep_token_view(view: Mapping[str, Any]) -> None:
    """Write the state of the token view to the address."""
    st.query_params.update(
        {name: [] if view[name] in (None, False) else str(view[name]) for name in TOKEN_VIEW}
    )


def long_view(length: int) -> dict[str, Any]:
    """Read the state of the long view of so many tokens from the address."""
    maps = _address_values("map", MAPS)
    view: dict[str, Any] = {"map": maps[-1]} if maps else {}
    if words := st.query_params.get("find"):
        view["find"] = words
    sides = {name: st.query_params.get(name, "") for name in ("queries", "keys")}
    window = {name: _window(text, length) for name, text in sides.items()}
    if all(window.values()):
        return view | window
    if bad := {name: text for name, text in sides.items() if text}:
        st.session_state.setdefault("bad_params", []).extend(
            f"The link asks for {name} = {text!r}; a window is two tokens of {length}, such as "
            f"queries=0-{WIDEST - 1}, at most {WIDEST} apart, of queries and of keys."
            for name, text in bad.items()
        )
        st.query_params.update({name: [] for name in bad})
    return view


def _window(text: str, length: int) -> list[int] | None:
    """Read the first and the last token of one side of a window; None where it is none.

    >>> _window("700-827", 900), _window("700-827", 800), _window("7", 900)
    ([700, 828], None, None)
    """
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal()):
        return None
    start, stop = int(first), int(last) + 1
    return [start, stop] if start < stop <= min(length, start + WIDEST) else None


def keep_long_view(view: Mapping[str, Any]) -> None:
    """Write the state of the long view to the address."""

    def text(value: Any) -> str | list[str]:
        if not value or value == MAPS[0]:
            return []
        return value if isinstance(value, str) else f"{int(value[0])}-{int(value[1]) - 1}"

    st.query_params.update({name: text(view[name]) for name in LONG_VIEW})


def link() -> str:
    """Return the link that reopens this view, defaults and all."""
    shown = {field: words for field in st.session_state[SHOWN] if (words := _address_texts(field))}
    base = str(st.context.url or "").split("?")[0]
    return f"{base}?{urlencode(address() | shown, doseq=True)}"

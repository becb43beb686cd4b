"""Screens are found in their folder: one file is all that a new one needs."""

import importlib
import sys
from pathlib import Path

import streamlit as st

from headscope.app.dashboard import screens
from headscope.app.dashboard.screens import heads

SCREEN = '''"""A screen of a test."""

import streamlit as st

TITLE = "Mine"


def opens(folder):
    return folder is not None and (folder / "mine.txt").exists()


def draw():
    st.title("A screen of mine")
'''


def test_a_file_in_the_folder_is_a_screen(tmp_path, dashboard, monkeypatch):
    (tmp_path / "screens").mkdir()
    (tmp_path / "screens" / "mine.py").write_text(SCREEN)
    monkeypatch.setattr(screens, "__path__", [*screens.__path__, str(tmp_path / "screens")])
    importlib.invalidate_caches()
    try:
        assert screens.names() == [
            "analyses", "attribution", "circuit", "compare", "heads", "importance", "mine", "runs",
            "timelines",
        ]  # fmt: skip
        (tmp_path / "mine.txt").touch()
        assert dashboard(tmp_path).title[0].value == "A screen of mine"
        (tmp_path / "mine.txt").unlink()
        assert dashboard(tmp_path).title[0].value == "headscope", "it opens on folders of its own"
    finally:
        sys.modules.pop(f"{screens.__name__}.mine", None)


def test_every_screen_states_what_the_navigation_shows():
    for name in screens.names():
        screen = screens.load(name)
        assert screen.TITLE
        assert (screen.draw.__doc__ or "").strip()


def test_the_address_is_kept_by_us_alone():
    """Widgets that Streamlit binds lose the address on the way to another screen."""
    files = Path(screens.__file__).parents[1].rglob("*.py")
    assert [file.name for file in files if "bind=" in file.read_text()] == []


def test_a_change_is_in_the_address_before_the_screen_is_drawn(dashboard, demo_run, monkeypatch):
    """Back, pressed while a screen is drawn, returns to the view that was shown before."""
    at_start: list[dict[str, str]] = []
    draw = heads.draw

    def noted() -> None:
        at_start.append(st.query_params.to_dict())
        draw()

    monkeypatch.setattr(heads, "draw", noted)
    app = dashboard(demo_run)
    app.number_input(key="first").set_value(3).run()
    assert at_start[-1]["first"] == "3"
    # The tokens on offer depend on the prompt, and one change is one step of Back.
    app.selectbox(key="prompt").set_value(1).run()
    assert "prompt" not in at_start[-1]
    assert app.query_params["prompt"] == "1"

"""Screens are found in their folder: one file is all that a new one needs."""

import importlib
import sys
from pathlib import Path

from headscope.app.dashboard import screens

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


def test_every_screen_says_what_the_navigation_shows():
    for name in screens.names():
        screen = screens.load(name)
        assert screen.TITLE
        assert (screen.draw.__doc__ or "").strip()


def test_the_address_is_kept_by_us_alone():
    """Widgets that Streamlit binds lose the address on the way to another screen."""
    files = Path(screens.__file__).parents[1].rglob("*.py")
    assert [file.name for file in files if "bind=" in file.read_text()] == []

"""A view of the browser as a page of its own, which notes what is picked and how it stands."""

from pathlib import Path
from typing import TYPE_CHECKING

from headscope.viz.component import view

if TYPE_CHECKING:
    from playwright.sync_api import Page

PICKS = (
    "window.picks = []; const on = {pick(at) { picks.push(at) }, state(to) { window.state = to }}"
)


def opened(page: "Page", made: view.View, folder: Path) -> None:
    """Open a view in a browser; ``picks`` and ``state`` of its window say what it has sent."""
    text = made.page().replace("const on = {pick() {}, state() {}}", PICKS)
    (folder / "view.html").write_text(text)
    page.goto((folder / "view.html").as_uri())
    page.wait_for_selector("canvas, [role=option]")
    page.wait_for_timeout(50)

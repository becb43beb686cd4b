"""Debian's Chromium, the dashboard on the demo run, and pages that may say no error."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from dashboard_server import served
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from headscope.analyses.series import timeline
from headscope_benchmarks.sessions import is_error

WAIT = 60_000


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "no chromium on the path; install it to run the browser tests"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        expect.set_options(timeout=WAIT)
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open pages of a width, each a visitor of its own; an error in any fails the test."""
    contexts, errors = [], []

    def note(message: ConsoleMessage) -> None:
        if is_error(message):
            errors.append(message.text)

    def new(width: int = 1280, height: int = 900, **options: object) -> Page:
        size = {"width": width, "height": height}
        contexts.append(browser.new_context(viewport=size, **options))
        contexts[-1].set_default_timeout(WAIT)
        contexts[-1].on("console", note)
        contexts[-1].on("weberror", lambda error: errors.append(str(error.error)))
        return contexts[-1].new_page()

    yield new
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture(scope="package")
def address(demo_run: Path) -> Iterator[str]:
    """The dashboard on the demo run."""
    with served(demo_run) as address:
        yield address


@pytest.fixture(scope="package")
def runs_address(demo_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dashboard on a run with another and a timeline beside it, for every screen."""
    place = tmp_path_factory.mktemp("place")
    for name in ("demo", "other"):
        shutil.copytree(demo_run, place / name)
    sources = [f"headscope/induction@step{step}" for step in (0, 400, 1000)]
    timeline("head_types", sources, options={"draws": 1}, n=4, out=place / "emergence")
    with served(place / "demo") as address:
        yield address


@pytest.fixture
def open_screen() -> Callable[[Page, str], None]:
    """Go to a screen by the navigation."""

    def run(page: Page, title: str) -> None:
        page.locator(".st-key-navigation").get_by_role("link", name=title).click()
        page.wait_for_url(re.compile(f"/{title.lower()}([?]|$)|:[0-9]+/([?]|$)"))

    return run


@pytest.fixture
def settle() -> Callable[[Page], None]:
    """Wait until a screen is drawn and nothing runs."""

    def run(page: Page) -> None:
        page.locator("[data-testid=stMain] :is(h1, h2, h3)").first.wait_for()
        # A screen may ask for another run when it stands; until then what it shows is faded.
        for _ in range(3):
            page.wait_for_timeout(400)
            page.wait_for_selector("[data-test-script-state=notRunning]")
        page.wait_for_function("() => !document.querySelector('[data-stale=true]')")

    return run


@pytest.fixture
def pattern() -> xr.DataArray:
    """The weights of four tokens, with names that are markup, a line end and a space."""
    weights = np.array([[1, 0, 0, 0], [0.9, 0.1, 0, 0], [0.2, 0.7, 0.1, 0], [0.05, 0.15, 0.3, 0.5]])
    tokens = ("query", ["<bos>", "<b>bold</b>", "\n", " é"])
    attrs = {"long_name": "Attention of L1H2", "units": "probability", "high": 1.0}
    return xr.DataArray(weights, dims=("query", "key"), coords={"token": tokens}, attrs=attrs)

"""Debian's Chromium, the dashboard on the demo run, and pages that may say no error."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dashboard_server import served
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

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
    """Open pages of a width; an error of a script or of the console fails the test at its end."""
    errors: list[str] = []
    opened: list[Page] = []

    def new(width: int = 1280, height: int = 900, **options: object) -> Page:
        page = browser.new_page(viewport={"width": width, "height": height}, **options)
        page.set_default_timeout(WAIT)
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        opened.append(page)
        return page

    yield new
    for page in opened:
        page.close()
    assert errors == []


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open a page as a visitor of one's own; its errors fail the test."""
    contexts, errors = [], []

    def note(message: ConsoleMessage) -> None:
        if is_error(message):
            errors.append(message.text)

    def run(address: str, **options: object) -> Page:
        contexts.append(
            browser.new_context(**{"viewport": {"width": 1280, "height": 1600}, **options})
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT)
        page.on("console", note)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        return page

    yield run
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture(scope="package")
def address(demo_run: Path) -> Iterator[str]:
    """The dashboard on the demo run."""
    with served(demo_run) as address:
        yield address

"""Real clicks on the Heads screen in Chromium."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from headscope.app.launch import command

pytestmark = pytest.mark.browser
WAIT = 60_000


@pytest.fixture(scope="module")
def address(demo_run: Path) -> Iterator[str]:
    """The dashboard as the command line starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        command(demo_run, port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/_stcore/health", timeout=1)
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "no chromium on the path; install it to run the browser tests"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 1200})
        page.set_default_timeout(WAIT)
        expect.set_options(timeout=WAIT)
        yield page
        browser.close()


def settled(page: Page) -> None:
    """Wait until the pattern is drawn and nothing runs."""
    page.wait_for_selector(".st-key-pattern_chart .js-plotly-plot")
    page.wait_for_selector("[data-testid=stStatusWidget]", state="detached")


def click_head(page: Page, layer: int, head: int) -> None:
    """Click the middle of a cell of the grid, found through plotly's own axes."""
    spot = page.evaluate(
        """([layer, head]) => {
            const plot = document.querySelector('.st-key-grid_chart .js-plotly-plot');
            const {xaxis, yaxis} = plot._fullLayout, box = plot.getBoundingClientRect();
            const x = xaxis._offset + xaxis.d2p(head), y = yaxis._offset + yaxis.d2p(layer);
            return [box.x + x, box.y + y];
        }""",
        [layer, head],
    )
    page.mouse.move(*spot)
    page.mouse.click(*spot)


def test_click_arrows_link_and_download(page: Page, address: str, tmp_path: Path) -> None:
    page.goto(f"{address}/?by=head_types.induction&prompt=1")
    settled(page)
    click_head(page, 2, 5)
    expect(page.get_by_role("heading", name="L2H5")).to_be_visible()
    page.wait_for_function("location.search.includes('layer=2')")
    assert "head=5" in page.url

    # Arrow keys belong to a widget while it has the focus.
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("heading", name="L2H6")).to_be_visible()
    page.keyboard.press("ArrowUp")
    expect(page.get_by_role("heading", name="L1H6")).to_be_visible()
    settled(page)

    click_head(page, 3, 0)
    expect(page.get_by_role("heading", name="L3H0")).to_be_visible()
    settled(page)
    link = page.url

    with page.expect_download() as download:
        page.get_by_role("button", name="CSV", exact=True).click()
    download.value.save_as(tmp_path / "heads.csv")
    lines = (tmp_path / "heads.csv").read_text().splitlines()
    assert len(lines) == 33
    assert "head_types.induction" in lines[0]

    page.goto("about:blank")
    page.goto(link)
    settled(page)
    expect(page.get_by_role("heading", name="L3H0")).to_be_visible()
    assert "by=head_types.induction" in page.url
    assert "prompt=1" in page.url


def test_no_request_leaves_the_machine(page: Page, address: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    settled(page)
    local = (address, address.replace("http", "ws"), "data:", "blob:")
    assert [url for url in asked if not url.startswith(local)] == []

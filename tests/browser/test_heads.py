"""Real clicks on the Heads screen in Chromium."""

import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from headscope.app.dashboard.launch import command
from headscope.probes.prompts import tasks
from headscope.probes.prompts.writing import split

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


def test_click_arrows_link_and_download(page, address, tmp_path):
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


def spot(page: Page, query: float, key: float) -> list[float]:
    """Find a place of the overview, in pixels, through plotly's own axes."""
    return page.evaluate(
        """([query, key]) => {
            const plot = document.querySelector('.st-key-overview_chart .js-plotly-plot');
            plot.scrollIntoView({block: 'center', behavior: 'instant'});
            const {xaxis, yaxis} = plot._fullLayout, box = plot.getBoundingClientRect();
            const x = xaxis._offset + xaxis.d2p(key), y = yaxis._offset + yaxis.d2p(query);
            return [box.x + x, box.y + y];
        }""",
        [query, key],
    )


def edges(page: Page) -> list[str]:
    """Read the first query and the first key of the window as the browser drew it."""
    return page.evaluate(
        """() => {
            const {x, y} = document.querySelector('.st-key-pattern_chart .js-plotly-plot').data[0];
            return [y[0], x[0]];
        }"""
    )


def test_a_click_and_a_box_move_the_window_of_a_long_text(page, address, bundled):
    told = tasks.make("story", tokenizer=bundled.tokenizer, n=30, seed=3).prompts
    text = " ".join([word for prompt in told for word in split(prompt.clean)][:900])
    words = bundled.words(bundled.encode(text))
    page.goto(f"{address}/?layer=1&head=3&{urlencode({'text': text})}")
    settled(page)
    page.wait_for_selector(".st-key-overview_chart .js-plotly-plot")
    assert edges(page) == ["0: &lt;bos&gt;", "0: &lt;bos&gt;"]

    # The middle of a tile of 16 tokens, where the window of 64 is put.
    middle = spot(page, 727.5, 311.5)
    page.mouse.move(*middle)
    page.mouse.click(*middle)
    page.wait_for_function("location.search.includes('queries=696')")
    assert "keys=280" in page.url
    wait_for_edges(page, [f"696: {words[696]}", f"280: {words[280]}"])

    page.get_by_text("Attention of L1H3, exact").first.wait_for()
    draw_box(page, spot(page, 400, 300), spot(page, 520, 410))
    page.wait_for_function("location.search.includes('side=128')")
    page.wait_for_function("!location.search.includes('queries=696')")
    first, key = (int(parse_qs(urlsplit(page.url).query)[name][0]) for name in ("queries", "keys"))
    assert abs(first - 400) <= 4
    assert abs(key - 300) <= 4
    wait_for_edges(page, [f"{first}: {words[first]}", f"{key}: {words[key]}"])

    link = page.url
    page.goto("about:blank")
    page.goto(link)
    settled(page)
    wait_for_edges(page, [f"{first}: {words[first]}", f"{key}: {words[key]}"])


def wait_for_edges(page: Page, wanted: list[str]) -> None:
    settled(page)
    for _ in range(100):
        if edges(page) == wanted:
            return
        page.wait_for_timeout(100)
    assert edges(page) == wanted


def draw_box(page: Page, start: list[float], end: list[float]) -> None:
    """Draw a box with plotly's own tool."""
    page.locator(".st-key-overview_chart").hover()
    page.locator(".st-key-overview_chart [data-val=select]").click()
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=8)
    page.mouse.up()


def test_no_request_leaves_the_machine(page, address):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    settled(page)
    local = (address, address.replace("http", "ws"), "data:", "blob:")
    assert [url for url in asked if not url.startswith(local)] == []

"""Several browser sessions on one dashboard: errors, leaks, and the memory of the server."""

import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import psutil  # type: ignore[import-untyped]
from playwright.sync_api import Browser, ConsoleMessage, Page

from headscope.app.dashboard import screens
from headscope.app.dashboard.launch import command

WAIT = 120_000


class Visits(NamedTuple):
    """Outcome of the visits: screens opened, errors, and megabytes of the server by seconds."""

    opened: int
    errors: list[str]
    megabytes: list[tuple[float, float]]

    @property
    def grown(self) -> float:
        """Megabytes that the server grew by after the first third, all screens seen once."""
        settled = self.megabytes[len(self.megabytes) // 3 :]
        return settled[-1][1] - settled[0][1]


@contextmanager
def serve(folder: Path, script: Path | None = None) -> Iterator[tuple[str, int]]:
    """Serve a folder, or another app in the same way; yields the address and the process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = command(folder, port)
    if script is not None:
        line[line.index("run") + 1] = str(script)
    server = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/_stcore/health", timeout=1)
                break
            except OSError:
                time.sleep(0.5)
        yield address, server.pid
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def is_error(message: ConsoleMessage) -> bool:
    """Return whether a line of the console is an error of the page.

    Streamlit looks for its own address below the address of a screen first, which is none.
    """
    return message.type == "error" and "/_stcore/" not in message.location.get("url", "")


def visit(
    browser: Browser,
    address: str,
    process: int,
    texts: Sequence[str],
    seconds: float,
) -> Visits:
    """Run visitors that go from screen to screen, each in a browser of its own.

    Each looks at a text and a head of its own; that it finds another one's is an error.
    """
    contexts = [browser.new_context() for _ in texts]
    pages = [context.new_page() for context in contexts]
    errors: list[str] = []
    for at, (page, text) in enumerate(zip(pages, texts, strict=True)):
        page.set_default_timeout(WAIT)
        page.on("console", lambda line: errors.append(line.text) if is_error(line) else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{address}/heads?{urlencode({'text': text, 'layer': at % 4, 'head': at})}")
    for at, (page, text) in enumerate(zip(pages, texts, strict=True)):
        _settle(page)
        errors += _leaks(page, text, f"L{at % 4}H{at}")
    titles = [screens.load(name).TITLE for name in screens.names()]
    watched, start, opened = psutil.Process(process), time.monotonic(), 0
    megabytes: list[tuple[float, float]] = []
    try:
        while time.monotonic() - start < seconds or not opened:
            for at, page in enumerate(pages):
                title = titles[(at + opened // len(texts)) % len(titles)]
                _open(page, title)
                errors += page.locator("[data-testid=stException]").all_inner_texts()
                if title == "Heads":
                    errors += _leaks(page, texts[at], f"L{at % 4}H{at}")
                opened += 1
            megabytes.append((time.monotonic() - start, watched.memory_info().rss / 1e6))
    finally:
        for context in contexts:
            context.close()
    return Visits(opened, errors, megabytes)


def _open(page: Page, title: str) -> None:
    """Open a screen, and wait until it is drawn."""
    page.locator(".st-key-navigation").get_by_role("link", name=title).click()
    _settle(page)


def _settle(page: Page) -> None:
    page.locator("[data-testid=stMain] :is(h1, h2, h3)").first.wait_for()
    page.wait_for_timeout(300)
    page.wait_for_selector("[data-test-script-state=notRunning]")


def _leaks(page: Page, text: str, head: str) -> Iterator[str]:
    """Return what a visitor sees that is not its own, once it sees a text."""
    page.wait_for_function("document.querySelector('.st-key-text textarea')?.value")
    shown = page.locator(".st-key-text textarea").input_value()
    if shown != text:
        yield f"the text of {head} is {shown!r}, not {text!r}"
    if not page.get_by_role("heading", name=head, exact=True).count():
        yield f"{head} is not in view at {page.url}"

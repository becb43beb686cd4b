"""Several browser sessions on one dashboard: errors, and the memory of the server."""

import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil  # type: ignore[import-untyped]
from playwright.sync_api import Browser, ConsoleMessage, Page

from headscope.app.dashboard import screens
from headscope.app.dashboard.launch import command

WAIT = 120_000


class Visits(NamedTuple):
    """What came of it: screens opened, errors, and megabytes of the server by seconds."""

    opened: int
    errors: list[str]
    megabytes: list[tuple[float, float]]

    @property
    def grown(self) -> float:
        """Megabytes that the server grew by after the first third, all screens seen once."""
        settled = self.megabytes[len(self.megabytes) // 3 :]
        return settled[-1][1] - settled[0][1]


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, int]]:
    """Serve a folder; yields the address and the process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        command(folder, port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
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
    """Tell whether a line of the console is an error of the page.

    Streamlit looks for its own address below the address of a screen first, which is none.
    """
    return message.type == "error" and "/_stcore/" not in message.location.get("url", "")


def visit(browser: Browser, address: str, process: int, sessions: int, seconds: float) -> Visits:
    """Let so many visitors go from screen to screen for a while, each in a browser of its own."""
    contexts = [browser.new_context() for _ in range(sessions)]
    pages = [context.new_page() for context in contexts]
    errors: list[str] = []
    for page in pages:
        page.set_default_timeout(WAIT)
        page.on("console", lambda line: errors.append(line.text) if is_error(line) else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
    titles = [screens.load(name).TITLE for name in screens.names()]
    watched, start, opened = psutil.Process(process), time.monotonic(), 0
    megabytes: list[tuple[float, float]] = []
    try:
        while time.monotonic() - start < seconds or opened < 3 * sessions:
            for at, page in enumerate(pages):
                _open(page, titles[(at + opened // sessions) % len(titles)])
                errors += page.locator("[data-testid=stException]").all_inner_texts()
                opened += 1
            megabytes.append((time.monotonic() - start, watched.memory_info().rss / 1e6))
    finally:
        for context in contexts:
            context.close()
    return Visits(opened, errors, megabytes)


def _open(page: Page, title: str) -> None:
    """Go to a screen, and wait until it stands."""
    page.get_by_test_id("stSidebarNav").get_by_role("link", name=title).click()
    page.wait_for_timeout(300)
    page.wait_for_selector("[data-testid=stStatusWidget]", state="detached")

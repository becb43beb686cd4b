"""Pages in Chromium: the bytes that they take, and the seconds until they are drawn."""

import re
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from playwright.sync_api import Browser, Error, Page, Route

from headscope_benchmarks.sessions import WAIT

LIMIT = 60.0
"""Seconds that a page has to be drawn."""
PACKAGES = {"require.js": "requirejs", "jqueryui": "jquery-ui-dist"}
FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


class Drawn(NamedTuple):
    """Cost of a page: bytes that it fetched besides, seconds, or why it was not drawn."""

    fetched: int
    seconds: float | None
    failed: str = ""


def draw(browser: Browser, file: Path, selector: str, scripts: Path) -> Drawn:
    """Open a page until something is in it and two frames are drawn; what it fetches is local."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    fetched: list[int] = []
    page.route(re.compile("^https?://"), lambda route: fetched.append(answer(route, scripts)))
    start = time.perf_counter()
    try:
        page.goto(file.as_uri(), wait_until="commit", timeout=1000 * LIMIT)
        page.wait_for_selector(selector, state="attached", timeout=1000 * LIMIT)
        frames(page)
        return Drawn(sum(fetched), round(time.perf_counter() - start, 3))
    except Error as error:
        words = str(error).splitlines()[0]
        why = f"not drawn within {LIMIT:g} s" if "Timeout" in words else words
        return Drawn(sum(fetched), None, why)
    finally:
        page.close()


def frames(page: Page) -> None:
    """Wait for two frames; a page that hangs is given up."""
    page.wait_for_function(f"({FRAMES})().then(() => true)", timeout=1000 * LIMIT)


def answer(route: Route, scripts: Path) -> int:
    """Answer a request to a network of scripts from the npm package that it names."""
    file = local(route.request.url, scripts)
    if file is None:
        route.abort()
        return 0
    route.fulfill(path=file, headers={"access-control-allow-origin": "*"})
    return file.stat().st_size


def local(address: str, scripts: Path) -> Path | None:
    """Find a script of cdnjs or unpkg in its npm package, which is fetched once."""
    match = re.search(r"ajax/libs/([^/]+)/([\d.]+)/(.+)$", address)
    match = match or re.search(r"(?:unpkg\.com|/npm)/([^@]+)@([\d.]+)/(.+)$", address)
    if match is None:
        return None
    library, version, path = match.groups()
    folder = scripts / f"{library}-{version}"
    if not folder.exists():
        name = PACKAGES.get(library, library)
        for version_range in (version, f"^{version}"):
            packed = subprocess.run(
                ["npm", "pack", "--silent", f"{name}@{version_range}"],
                cwd=scripts, capture_output=True, text=True,
            )  # fmt: skip
            if packed.returncode == 0:
                break
        else:
            return None
        with tarfile.open(scripts / packed.stdout.split()[-1]) as archive:
            archive.extractall(folder, filter="data")
    stem = Path(path).name.replace(".min.js", ".js")
    files = [
        file
        for pattern in (Path(path).name, stem)
        for file in sorted(folder.rglob(pattern), key=lambda file: len(file.parts))
        if file.as_posix().endswith(path) or "/" not in path
    ]
    return files[0] if files else None


def visit(browser: Browser, address: str, *selectors: str) -> dict[str, Any]:
    """Open a screen as a new visitor: seconds until all is drawn, and bytes over HTTP."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(WAIT)
    sizes: list[float] = []
    network = context.new_cdp_session(page)
    network.send("Network.enable")
    network.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    start = time.perf_counter()
    page.goto(address, wait_until="commit")
    for selector in selectors:
        page.wait_for_selector(selector)
    frames(page)
    seconds = time.perf_counter() - start
    page.wait_for_load_state("networkidle")
    first = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    context.close()
    return {
        "seconds": round(seconds, 3),
        "first_contentful_paint": round(first / 1000, 3),
        "http_bytes": int(sum(sizes)),
    }

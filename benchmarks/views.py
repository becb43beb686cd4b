"""One layer of SmolLM2 on one text, drawn by headscope, BertViz and CircuitsVis: bytes and time.

python -P benchmarks/views.py PEERS    where PEERS holds the packages bertviz and circuitsvis
                                       (pip install --no-deps --target PEERS bertviz circuitsvis)
                                       and the scripts that BertViz fetches from a network,
                                       require.min.js, d3.min.js and jquery.min.js

Each page is opened in Chromium from disk, three times in turn; the time is until its marks are
drawn and two frames have been painted. BertViz cannot draw without scripts of a network, which
count as bytes; CircuitsVis has its script in the page, as it does without a network.
"""

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from playwright.sync_api import Browser, Page, sync_playwright
from playwright.sync_api import TimeoutError as TooLong

sys.path.insert(0, str(Path(__file__).parent))

from headscope import viz
from headscope.probes import capture, load_model
from headscope_benchmarks import machine

LAYER, TOKENS, ROUNDS, LIMIT = 18, 512, 3, 120.0
RESULT = Path(__file__).parent / "results" / "views.json"
# What tells that a page has drawn its patterns.
DRAWN = {
    "headscope": "[role=option]",
    "BertViz": "svg line",
    "CircuitsVis": "canvas, img, .attention-heads, svg",
}
PAGE = "<!doctype html><meta charset='utf-8'><body>{}</body>"


def pages(peers: Path) -> Iterator[tuple[str, str, int]]:
    """Yield each program, its page, and the bytes of the scripts that it fetches besides."""
    model = load_model("headscope/smollm2")
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    ids = model.encode(text)[:TOKENS]
    found = capture(model, [ids], stats=("pattern",)).isel(prompt=0)
    layer = found["pattern"].isel(layer=LAYER)
    words = [str(word) for word in found["token"].values]
    yield "headscope", viz.token_view(layer).page(), 0

    sys.path.insert(0, str(peers))
    from bertviz import head_view
    from circuitsvis.attention import attention_heads

    weights = torch.tensor(np.asarray(layer.values, dtype=np.float32))
    made: Any = head_view([weights[None]], words, html_action="return", layer=0)
    scripts = sum(path.stat().st_size for path in peers.glob("*.min.js"))
    yield "BertViz", PAGE.format(made.data), scripts
    yield "CircuitsVis", PAGE.format(attention_heads(weights, words).local_src), 0


def seconds(browser: Browser, peers: Path, name: str, path: Path) -> float | None:
    """Open a page; return the seconds until it is drawn, None where that takes too long."""
    page: Page = browser.new_page(viewport={"width": 1280, "height": 900})
    for script in peers.glob("*.min.js"):
        page.route(f"**/{script.name}", lambda route, _, it=script: route.fulfill(path=it))
    start = time.perf_counter()
    try:
        page.goto(path.as_uri(), wait_until="commit", timeout=1000 * LIMIT)
        page.wait_for_selector(DRAWN[name], state="attached", timeout=1000 * LIMIT)
        page.evaluate("new Promise(end => requestAnimationFrame(() => requestAnimationFrame(end)))")
        return time.perf_counter() - start
    except TooLong:
        return None
    finally:
        page.close()


def main(peers: Path) -> None:
    """Measure, print and keep the result."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        files = {}
        for name, page, scripts in pages(peers):
            files[name] = Path(folder, f"{name}.html")
            files[name].write_text(page, encoding="utf-8")
            rows[name] = {"bytes": files[name].stat().st_size + scripts, "seconds": []}
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(ROUNDS):
            for name, path in files.items():
                rows[name]["seconds"].append(seconds(browser, peers, name, path))
        browser.close()
    for name, row in rows.items():
        known = [each for each in row["seconds"] if each is not None]
        row["median"] = round(statistics.median(known), 3) if known else None
        print(f"{name}: {row['bytes'] / 1e6:.2f} MB, {row['median']} s", file=sys.stderr)
    what = {"model": "headscope/smollm2", "layer": LAYER, "heads": 9, "tokens": TOKENS}
    result = {**what, "machine": machine.describe(), "pages": rows}
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

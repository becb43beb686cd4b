"""Measure our views in Chromium beside BertViz and CircuitsVis, and the dashboard against its bars.

``python -P benchmarks/views.py --peers PYTHON`` takes some minutes. PYTHON is one that has bertviz
and circuitsvis; without it ours are measured alone. What their pages fetch from networks of scripts
comes from the npm packages of the same versions, so that no network is timed. Needs a chromium, npm
and ``headscope models get headscope/smollm2`` once.
"""

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parent))

from headscope import viz
from headscope.app.dashboard import launch
from headscope.kernels import statistics as kernel_statistics
from headscope.kernels.errors import ResourceLimit
from headscope.probes import load_model, tasks
from headscope.probes.attention.layer_attention import Layer, run_until_layer
from headscope.probes.models.model import Model
from headscope.viz.component.view import View
from headscope_benchmarks import machine, pages, peer_pages, terminal
from headscope_benchmarks.random_model import random_run
from headscope_benchmarks.sessions import serve

NAME, LAYER, HEAD = "headscope/smollm2", 3, 3
LENGTHS = (512, 4096)
WINDOW = 512
MAKING = 180.0
"""Seconds that a peer has to write its page."""
# What is in a page when it is drawn; Playwright looks into the shadows of ours.
DRAWN = {
    "BertViz": "svg line", "CircuitsVis": "canvas, img, svg", "text": "[role=option]",
    "map": ".cells canvas", "lines": ".lines canvas", "long": ".crumbs [aria-current]",
    "thumbnails": ".bar",
}  # fmt: skip
GRID, TOKENS = ".st-key-head_grid canvas", ".st-key-token_view .tokens [role=option]"
EMPTY = "[data-testid=stMarkdownContainer]"
HEADS = 32
CLICKS = 12
# In seconds and in bytes, not to be exceeded.
BARS = {
    "click to detail, 32 × 32 heads, s": 0.3,
    "first paint of all, warm, s": 2.0,
    "first HTTP bytes beyond an empty Streamlit app, both compressed": 300e3,
}


@cache
def loaded() -> Model:
    """Load the model once."""
    return load_model(NAME)


def text(model: Model, length: int) -> list[int]:
    """Return so many tokens of English prose."""
    (prompt,) = tasks.make("needle", model.tokenizer, n=1, length=2 * length).prompts
    return model.encode(prompt.clean)[:length]


@cache
def layer_of(length: int) -> tuple[Layer, list[str]]:
    """Run the model up to the layer, on a text of this length; also its tokens."""
    model = loaded()
    ids = text(model, length)
    return run_until_layer(model, ids, LAYER), model.to_str_tokens(ids)


def weights_of(length: int, heads: range, part: int | None = None) -> xr.DataArray:
    """Compute patterns of some heads, whole or of the first tokens; head, query and key."""
    layer, words = layer_of(length)
    every = np.arange(len(words))[:part]
    return xr.DataArray(
        np.stack([layer.weights(head, every, every) for head in heads])[None],
        dims=("layer", "head", "query", "key"),
        coords={"layer": [LAYER], "head": list(heads), "token": ("query", words[:part])},
        attrs={"units": "probability", "high": 1.0},
    )


def ours(length: int) -> Iterator[tuple[str, str, Callable[[], View]]]:
    """Yield our views of a text, what they show, and how they are made from tensors."""
    if length <= WINDOW:
        several = weights_of(length, range(loaded().heads))
        example = several.isel(layer=0, head=HEAD)
        for mode in ("Text", "Map", "Lines"):
            yield mode.lower(), "one head", partial(viz.token_view, example, state={"mode": mode})
        yield "text", "a layer", partial(viz.token_view, several)
    else:
        whole = overview(length, HEAD, 256)
        layer, words = layer_of(length)
        at = np.arange(len(words) - WINDOW, len(words))
        window = xr.DataArray(
            layer.weights(HEAD, at, at), dims=("query", "key"),
            coords={"query": at, "key": at, "token": ("query", words[-WINDOW:])},
        )  # fmt: skip
        yield "long", "one head", partial(viz.long_view, whole)
        yield "long", "one head, a window", partial(viz.long_view, whole, window=window)
    maps = xr.concat(
        [overview(length, head, 32)["pooled_max"] for head in range(loaded().heads)], "head"
    )
    yield "thumbnails", "a layer", partial(viz.thumbnails, maps.expand_dims("layer"))


def overview(length: int, head: int, blocks: int) -> xr.Dataset:
    """Pool the pattern of one head into so many blocks a side."""
    layer, words = layer_of(length)
    tile = -(-len(words) // blocks)
    pooled = layer.overview(head, tile)
    return xr.Dataset(
        {name: (kernel_statistics.load(name).dims, pooled[name]) for name in pooled},
        coords={"token": ("query", words), "layer": LAYER, "head": head},
        attrs={"tile": tile},
    )


def measure_ours(browser: Browser, length: int, folder: Path) -> list[dict[str, Any]]:
    """Measure our views of a text of this length."""
    rows = []
    for kind, what, make in ours(length):
        start = time.perf_counter()
        file = make().save(folder / "ours.html")
        seconds_made = time.perf_counter() - start
        draws = [pages.draw(browser, file, DRAWN[kind], folder) for _ in range(3)]
        seconds = [drawing.seconds for drawing in draws if drawing.seconds is not None]
        rows.append(
            {
                "view": f"headscope, {kind}", "what": what, "tokens": length,
                "bytes": file.stat().st_size, "made_s": round(seconds_made, 3),
                "drawn_s": statistics.median(seconds) if seconds else None,
                "failed": draws[-1].failed,
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def measure_peers(
    browser: Browser, length: int, folder: Path, python: Path
) -> list[dict[str, Any]]:
    """Measure the peers' pages of the same heads: one, and the layer."""
    rows = []
    # Their scripts are fetched before anything is timed.
    for name in peer_pages.NAMES:
        _peer(browser, name, weights_of(length, range(1), 8), folder, python)
    for heads in (range(HEAD, HEAD + 1), range(loaded().heads)):
        for name in peer_pages.NAMES:
            row: dict[str, Any] = {
                "view": name, "what": "one head" if len(heads) == 1 else "a layer",
                "tokens": length, "bytes": None, "made_s": None, "drawn_s": None, "failed": "",
            }  # fmt: skip
            rows.append(row)
            if len(heads) > 1 and length > WINDOW:
                row["failed"] = "not tried: nine times the page of one head"
            else:
                row |= _peer(browser, name, weights_of(length, heads), folder, python)
            print(row, flush=True)
    return rows


def _peer(
    browser: Browser, name: str, weights: xr.DataArray, folder: Path, python: Path
) -> dict[str, Any]:
    source, file = folder / "weights.npz", folder / "peer.html"
    np.savez(source, weights=weights.values[0], tokens=np.array(weights["token"].values.tolist()))
    line = [python, "-P", peer_pages.__file__, name, source, file]
    try:
        process = subprocess.run(line, capture_output=True, text=True, timeout=MAKING)
    except subprocess.TimeoutExpired:
        return {"failed": f"its page was not written within {MAKING:g} s"}
    if process.returncode:
        return {"failed": (process.stderr.strip().splitlines() or ["killed"])[-1][:200]}
    size, seconds = file.stat().st_size, round(float(process.stdout.split()[-1]), 3)
    draws = [pages.draw(browser, file, DRAWN[name], folder)]
    while draws[-1].seconds is not None and len(draws) < 3:
        draws.append(pages.draw(browser, file, DRAWN[name], folder))
    seconds_drawn = [drawing.seconds for drawing in draws if drawing.seconds is not None]
    return {
        "bytes": size + draws[0].fetched, "made_s": seconds,
        "drawn_s": statistics.median(seconds_drawn) if seconds_drawn else None,
        "failed": draws[-1].failed,
    }  # fmt: skip


# The time from the press of the mouse to the frame that shows another head's tokens.
WATCH = """([said, name]) => {
  const before = said.textContent;
  let start = 0;
  window.addEventListener("pointerdown", () => (start = performance.now()), { once: true, capture: true });
  window.took = new Promise((done) => {
    const look = () => {
      const named = [...document.querySelectorAll("h1, h2, h3")].some((one) => one.textContent.includes(name));
      if (start && named && said.textContent !== before) requestAnimationFrame(() => done(performance.now() - start));
      else requestAnimationFrame(look);
    };
    look();
  });
}"""  # noqa: E501


def clicks(page: Page) -> list[float]:
    """Click heads here and there; returns seconds until each is drawn."""
    rng, seconds, at = random.Random(3), [], (0, 0)
    for _ in range(CLICKS):
        to = rng.randrange(HEADS), rng.randrange(HEADS)
        page.wait_for_selector("[data-testid=stStatusWidget]", state="detached")
        picked = page.locator(".st-key-head_grid .picked").bounding_box()
        sentence = page.locator(".st-key-token_view .said.out").element_handle()
        assert picked is not None
        page.evaluate(WATCH, [sentence, f"L{to[0]}H{to[1]}"])
        side = picked["width"]
        page.mouse.click(
            picked["x"] + side * (to[1] - at[1] + 0.5), picked["y"] + side * (to[0] - at[0] + 0.5)
        )
        seconds.append(page.evaluate("window.took") / 1000)
        at = to
    return seconds


def dashboard(browser: Browser, folder: Path) -> dict[str, Any]:
    """Measure first paints, warm, and clicks on the large run, beside an empty Streamlit app."""
    # As many layers as heads, on four stories.
    server = Path(launch.__file__).with_name("server.py")
    run = random_run(folder, (HEADS, HEADS), ("sinks", "entropy", "head_types"), 4).path
    empty = folder / "empty.py"
    empty.write_text("import streamlit as st\nst.write('nothing')\n", encoding="utf-8")
    likewise = folder / "compressed.py"
    served = server.read_text(encoding="utf-8").replace("main.py", empty.name)
    likewise.write_text(served.replace("early=EARLY", ""), encoding="utf-8")
    measures: dict[str, Any] = {
        "first visit": None,
        "warm": [],
        "empty": [],
        "empty, compressed": [],
    }
    with (
        serve(run) as (address, _),
        serve(run, empty) as (empty_address, _),
        serve(run, likewise) as (compressed_address, _),
    ):
        measures["first visit"] = pages.visit(browser, address, GRID, TOKENS)
        for page_address in (empty_address, compressed_address):
            pages.visit(browser, page_address, EMPTY)
        for _ in range(5):
            measures["warm"].append(pages.visit(browser, address, GRID, TOKENS))
            measures["empty"].append(pages.visit(browser, empty_address, EMPTY))
            measures["empty, compressed"].append(pages.visit(browser, compressed_address, EMPTY))
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        received: list[int] = []
        page.on(
            "websocket",
            lambda socket: socket.on("framereceived", lambda data: received.append(len(data))),
        )
        page.goto(f"{address}/?layer=0&head=0")
        page.wait_for_selector(TOKENS)
        page.wait_for_timeout(1000)
        before = sum(received)
        seconds = clicks(page)
        measures["clicks"] = [round(click, 3) for click in seconds]
        measures["bytes a click"] = round((sum(received) - before) / len(seconds))
        page.close()
    return measures


def bars(measures: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Return what was measured for each bar, and the bar."""

    def middle(visits: list[dict[str, Any]], name: str) -> float:
        return float(statistics.median(visit[name] for visit in visits))

    measured = (
        statistics.median(measures["clicks"]),
        middle(measures["warm"], "seconds"),
        middle(measures["warm"], "http_bytes")
        - middle(measures["empty, compressed"], "http_bytes"),
    )
    return {name: (value, BARS[name]) for name, value in zip(BARS, measured, strict=True)}


def main() -> int:
    """Measure, write the result, and print what was met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, help="a Python that has bertviz and circuitsvis")
    parser.add_argument("--only", choices=("pages", "dashboard"), help="measure one half anew")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise ResourceLimit("chromium: there is none on the path; install it")
    described = machine.describe()
    name = f"views-{machine.slug(described).removeprefix('cpu-')}"
    earlier = machine.RESULTS / f"{name}.json"
    result = json.loads(earlier.read_text("utf-8")) if options.only and earlier.exists() else {}
    result |= {"schema": 1, "headscope": version("headscope"), "machine": described}
    load = machine.load()
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = Path(temporary)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        result["machine"]["chromium"] = browser.version
        if options.only != "pages":
            result["dashboard"] = dashboard(browser, folder) | loads(load)
            result["bars"] = bars(result["dashboard"])
            for bar, (value, must) in result["bars"].items():
                print(f"{bar}: {value:.3g} (must be at most {must:g})", flush=True)
        if options.only != "dashboard":
            rows = []
            for length in LENGTHS:
                rows += measure_ours(browser, length, folder)
                if options.peers is not None:
                    rows += measure_peers(browser, length, folder, options.peers)
            result["pages"] = {"rows": rows, **loads(load)}
        browser.close()
    print(machine.save(result, name))
    return int(any(value > bar for value, bar in result.get("bars", {}).values()))


def loads(before: float) -> dict[str, float]:
    """Return how busy the machine was before and after."""
    return {"load_before": before, "load_after": machine.load()}


if __name__ == "__main__":
    terminal.run(main)

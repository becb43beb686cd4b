"""Importance, Compare and Timelines in Chromium: mouse, keyboard, link, Back, download."""

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from dashboard_server import served
from playwright.sync_api import Locator, Page, expect

from headscope.analyses import series
from headscope.app.exports import importance_table
from headscope.app.pipeline import analyze_run, capture_run
from headscope.probes.storage import run_folder

pytestmark = pytest.mark.browser
WIDTHS = (900, 1280, 1920)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with importance, one with pruning, too; and a timeline."""
    folder = tmp_path_factory.mktemp("served")
    options = {"pruning": {"points": 4, "orders": 2}}
    for name, seed, names in (("one", 1, ("importance", "pruning")), ("two", 2, ("importance",))):
        run = capture_run(folder / name, "headscope/bundled", task="story", number=2, seed=seed)
        analyze_run(run, names, options={key: options[key] for key in names if key in options})
    sources = [f"headscope/induction@step{step}" for step in (0, 400, 1000)]
    series.timeline("head_types", sources, options={"draws": "1"}, n=4, out=folder / "emergence")
    return folder


@pytest.fixture(scope="module")
def address(place: Path) -> Iterator[str]:
    with served(place) as address:
        yield address


def settled(page: Page, chart: str) -> None:
    """Wait until a chart is drawn and nothing runs."""
    page.wait_for_selector(f".st-key-{chart} .js-plotly-plot .main-svg")
    page.wait_for_timeout(300)
    page.wait_for_selector("[data-testid=stStatusWidget]", state="detached")


def spot(
    page: Page, chart: str, name: str, right: float = 0, down: float = 0
) -> tuple[float, float]:
    """Find the mark of a name in a chart, in pixels, so far off its middle."""
    x, y = page.evaluate(
        """([chart, name]) => {
            const plot = document.querySelector(`.st-key-${chart} .js-plotly-plot`);
            plot.scrollIntoView({block: 'center', behavior: 'instant'});
            const {xaxis, yaxis} = plot._fullLayout, box = plot.getBoundingClientRect();
            // Of a line the last point: at the first, lines lie on each other.
            let found = null;
            for (const trace of plot.calcdata) for (const point of trace) {
                if (trace[0].trace.customdata?.[point.i]?.[0] !== name) continue;
                found = [box.x + xaxis._offset + xaxis.c2p(point.x),
                         box.y + yaxis._offset + yaxis.c2p(point.y)];
            }
            return found;
        }""",
        [chart, name],
    )
    return x + right, y + down


def click(page: Page, at: tuple[float, float]) -> None:
    page.mouse.move(*at)
    page.wait_for_timeout(200)
    page.mouse.click(*at)


def heading(page: Page, name: str) -> Locator:
    return page.get_by_role("heading", name=name, exact=True)


@pytest.mark.parametrize("width", WIDTHS)
def test_heads_and_pairs_of_methods_are_picked_off_their_middle(width, new_page, address, place):
    page = new_page(width, 1200)
    page.goto(f"{address}/importance?run=one&pick=L0H0")
    settled(page, "methods_scatter")
    names = importance_table.rows(run_folder.open(place / "one").results())["name"].tolist()
    for number, (right, down) in enumerate(((5, -5), (-5, 6), (0, 7))):
        click(page, spot(page, "ranked", names[3 * number], right, down))
        expect(heading(page, names[3 * number])).to_be_visible()
        page.wait_for_function(f"location.search.includes('pick={names[3 * number]}')")
    # The same again after another one was picked elsewhere.
    click(page, spot(page, "methods_scatter", names[1]))
    expect(heading(page, names[1])).to_be_visible()
    click(page, spot(page, "ranked", names[6]))
    expect(heading(page, names[6])).to_be_visible()

    click(page, spot(page, "agreement", "zero_ablation resample_ablation", 18, -22))
    page.wait_for_function("location.search.includes('y=resample')")
    expect(page.get_by_text("ranks by zero ablation and by resample ablation")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_keys_link_back_and_download(new_page, address, place, tmp_path):
    page = new_page()
    page.goto(f"{address}/importance?run=one&pick=L3H1&top=10")
    settled(page, "methods_scatter")
    expect(heading(page, "L3H1")).to_be_visible()
    box = page.get_by_role("combobox", name="Head", exact=False).first
    box.fill("L2H4")
    box.press("Enter")
    expect(heading(page, "L2H4")).to_be_visible()
    page.wait_for_function("location.search.includes('pick=L2H4')")
    assert "top=10" in page.url
    page.go_back()
    expect(heading(page, "L3H1")).to_be_visible()
    settled(page, "methods_scatter")
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV", exact=True).click()
    download.value.save_as(tmp_path / "heads.csv")
    read = pd.read_csv(tmp_path / "heads.csv")
    known = importance_table.rows(run_folder.open(place / "one").results())
    assert read["name"].tolist() == known["name"].tolist()
    page.get_by_role("link", name="Open L3H1 in Heads").click()
    expect(page.locator(".st-key-head_grid .picked")).to_be_visible()
    expect(heading(page, "L3H1").first).to_be_visible()
    assert "layer=3" in page.url
    page.go_back()
    expect(heading(page, "Importance")).to_be_visible()
    expect(heading(page, "L3H1")).to_be_visible()


def test_a_report_is_built_previewed_and_downloaded(new_page, address, tmp_path):
    page = new_page(1280, 1400)
    page.goto(f"{address}/importance?run=one")
    settled(page, "methods_scatter")
    page.locator(".st-key-build_report button").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="HTML", exact=True).click()
    download.value.save_as(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert 'id="importance"' in text
    page.get_by_text("Preview").click()
    inside = page.frame_locator("iframe[title]").last
    expect(inside.get_by_role("heading", name="Answer")).to_be_visible()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_pick_in_one_grid_is_a_pick_in_all(width, new_page, address, settle):
    link = "compare?run=one&other=two&compared=importance.mean_ablation&pick=L1H1"
    page = new_page(width, 1400)
    page.goto(f"{address}/{link}")
    settled(page, "compared_scatter")
    first = page.locator(".st-key-grid_A .picked")
    first.wait_for()
    settle(page)
    box = first.bounding_box()
    side = box["width"]
    click(page, (box["x"] + 3.9 * side, box["y"] + 1.1 * side))
    expect(heading(page, "L2H4")).to_be_visible()
    page.wait_for_function("location.search.includes('pick=L2H4')")
    page.wait_for_selector("[data-testid=stStatusWidget]", state="detached")
    for key in ("A", "B", "difference"):
        canvas = page.locator(f".st-key-grid_{key} canvas").bounding_box()
        outline = page.locator(f".st-key-grid_{key} .picked").bounding_box()
        column = (outline["x"] - canvas["x"]) / outline["width"]
        assert 4 < column < 6, "the names of the layers stand before the first column"
    grid = page.locator(".st-key-grid_difference [role=grid]")
    grid.focus()
    for key in ("ArrowDown", "ArrowLeft", "Enter"):
        page.keyboard.press(key)
    expect(heading(page, "L3H3")).to_be_visible()
    settle(page)
    page.go_back()
    expect(heading(page, "L2H4")).to_be_visible()
    click(page, spot(page, "compared_scatter", "L3H7"))
    expect(heading(page, "L3H7")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_differences_are_downloaded_and_the_head_opens_in_either_run(
    new_page, address, place, tmp_path
):
    page = new_page()
    page.goto(f"{address}/compare?run=one&other=two&compared=importance.zero_ablation&pick=L1H1")
    settled(page, "compared_scatter")
    with page.expect_download() as download:
        page.get_by_role("button", name="JSON", exact=True).click()
    download.value.save_as(tmp_path / "differences.json")
    told = json.loads((tmp_path / "differences.json").read_text())
    sides = [run_folder.open(place / name).results()["importance"] for name in ("one", "two")]
    change = float((sides[1] - sides[0])["zero_ablation"][1, 1])
    [head] = [each for each in told["scores"][0]["heads"] if each["head"] == "L1H1"]
    assert head["difference"] == pytest.approx(change)
    for letter, run in (("A", "one"), ("B", "two")):
        page.get_by_role("link", name=f"Open L1H1 of {letter} in Heads").click()
        expect(page.locator(".st-key-head_grid .picked")).to_be_visible()
        expect(heading(page, "L1H1").first).to_be_visible()
        expect(page.locator(".st-key-run input")).to_have_value(run)
        page.go_back()
        settled(page, "compared_scatter")


def test_a_line_a_cell_and_a_key_pick_a_head_of_a_timeline(new_page, address, tmp_path):
    page = new_page()
    page.goto(f"{address}/timelines?score=induction&line=L0H1")
    settled(page, "lines")
    click(page, spot(page, "lines", "L1H2"))
    page.wait_for_function("location.search.includes('line=L1H2')")
    page.wait_for_selector("[data-testid=stStatusWidget]", state="detached")
    widths = """() => Object.fromEntries(document.querySelector('.st-key-lines .js-plotly-plot')
        .data.filter(trace => trace.hovertext).map(trace => [trace.name, trace.line.width]))"""
    page.wait_for_function(f"({widths})()['L1H2'] === 4")
    grid = page.locator(".st-key-timeline_grid [role=grid]")
    grid.focus()
    for key in ("ArrowRight", "Enter"):
        page.keyboard.press(key)
    page.wait_for_function("location.search.includes('line=L1H3')")
    page.go_back()
    page.wait_for_function(f"({widths})()['L1H2'] === 4")
    settled(page, "lines")
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV", exact=True).click()
    download.value.save_as(tmp_path / "lines.csv")
    read = pd.read_csv(tmp_path / "lines.csv")
    assert {"checkpoint", "step", "layer", "head", "induction"} <= set(read.columns)
    assert len(read) == 3 * 8

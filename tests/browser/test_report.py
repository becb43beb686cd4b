"""The report opens from disk, without a server and without a network, for every reader."""

from itertools import pairwise
from pathlib import Path

import axe
import pytest
from playwright.sync_api import Page

from headscope.app.report import build
from headscope.probes.storage import run_folder

pytestmark = pytest.mark.browser

UNFOLD = "document.querySelectorAll('details').forEach(part => { part.open = true; })"
DRAWN = "[...document.querySelectorAll('.plot')].every(place => place.querySelector('.main-svg'))"


@pytest.fixture(scope="module")
def report(demo_run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = build.write_report(run_folder.open(demo_run), tmp_path_factory.mktemp("report"))
    return path.as_uri()


def unfold(page: Page) -> None:
    page.evaluate(UNFOLD)
    page.wait_for_function(DRAWN)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn_from_disk(scheme, report, browser):
    asked: list[str] = []
    errors: list[str] = []
    page = browser.new_page(color_scheme=scheme)
    page.on("request", lambda request: asked.append(request.url))
    page.on(
        "console", lambda output: errors.append(output.text) if output.type == "error" else None
    )
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(report)
    assert page.locator(".plot .main-svg").count() == 0, "figures are drawn where they are seen"
    unfold(page)
    assert page.locator(".plot").count() > 8
    # Text on its background, as the reader sees it.
    title = page.locator(".plot .gtitle").first.evaluate("one => getComputedStyle(one).fill")
    assert title == page.evaluate("getComputedStyle(document.body).color")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert [address for address in asked if not address.startswith("blob:")] == [report]
    assert errors == []
    assert axe.violations(page) == []
    page.close()


@pytest.mark.parametrize("width", [900, 1280, 1920])
def test_folded_it_is_short_and_answers_on_the_first_screen(width, report, browser):
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(report)
    height = page.evaluate("document.documentElement.scrollHeight")
    assert height < 12 * 800
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for text in ("Too few prompts (3, of at least 16)", "L3H2"):
        box = page.get_by_text(text).first.bounding_box()
        assert box is not None
        assert box["y"] < 800
    assert axe.violations(page) == []
    page.close()


def test_a_link_opens_the_part_that_it_leads_to(report, browser):
    page = browser.new_page()
    page.goto(f"{report}#sinks")
    assert page.locator("#sinks-title").is_visible()
    assert not page.locator("#head_types-title").is_visible()
    page.goto(f"{report}#head_types")
    assert page.locator("#head_types-title").is_visible()
    page.get_by_role("button", name="Fold all").press("Enter")
    assert not page.locator("#sinks-title").is_visible()
    page.close()


def test_headings_are_in_order_and_every_table_has_a_caption(report, browser):
    page = browser.new_page()
    page.goto(report)
    levels = page.locator("h1, h2, h3, h4, h5").evaluate_all(
        "all => all.map(one => +one.tagName[1])"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.locator("table:not(:has(> caption))").count() == 0
    assert page.locator("figure:not([aria-label])").count() == 0
    page.close()


def test_on_paper_figures_fit_and_are_dark_on_light(report, browser, tmp_path):
    page = browser.new_page(color_scheme="dark")
    page.goto(report)
    unfold(page)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    widths = page.locator(".plot .main-svg").evaluate_all("all => all.map(one => one.clientWidth)")
    assert max(widths) <= 680
    fill = page.locator(".plot .gtitle").first.evaluate("one => getComputedStyle(one).fill")
    assert fill == "rgb(29, 36, 48)" == page.evaluate("getComputedStyle(document.body).color")
    page.close()

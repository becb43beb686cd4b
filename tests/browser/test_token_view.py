"""Attention on tokens as a page of its own: Text, Map, Lines and thumbnails."""

import re

import numpy as np
import pytest
import screen
import xarray as xr
from playwright.sync_api import Page, expect
from view_pages import opened

from headscope import viz

pytestmark = pytest.mark.browser


def shares(page: Page, side: str) -> list[int]:
    """Read how strongly each token is coloured, in percent."""
    read = f"all => all.map(one => parseInt(getComputedStyle(one).getPropertyValue('--{side}')))"
    return page.locator("[role=option]").evaluate_all(read)


def test_a_token_shows_what_it_attends_to_and_what_attends_to_it(pattern, new_page, tmp_path):
    page = new_page()
    opened(page, viz.token_view(pattern, state={"scale": "0–1"}), tmp_path)
    tokens = page.locator("[role=option]")
    assert tokens.all_text_contents() == ["<bos>", "<b>bold</b>", "⏎", "·é"]
    tokens.nth(1).hover()
    assert shares(page, "out") == [90, 10, 0, 0]
    assert shares(page, "in") == [0, 0, 70, 15]
    edges = "one => [getComputedStyle(one).borderBottomStyle, getComputedStyle(one).borderTopStyle]"
    assert tokens.nth(0).evaluate(edges) == ["solid", "dashed"]
    bottom = tokens.nth(0).evaluate("one => getComputedStyle(one).borderBottomColor")
    assert bottom != tokens.nth(3).evaluate("one => getComputedStyle(one).borderTopColor")
    expect(page.locator(".said.out")).to_have_text(
        "1 <b>bold</b> attends to: 0 <bos>  0.900 · 1 <b>bold</b>  0.100"
    )
    expect(page.locator(".said.in")).to_contain_text("attended by: 2 ⏎  0.700 · 3 ·é  0.150")

    tokens.nth(1).click()
    tokens.nth(3).hover()
    assert shares(page, "out") == [90, 10, 0, 0]
    assert page.evaluate("state.token") == 1
    page.get_by_role("listbox").focus()
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("status")).to_contain_text("attends to")
    page.keyboard.press("Enter")
    expect(page.locator("[role=option][aria-selected=true]")).to_have_count(1)

    page.get_by_label("Hide first token (<bos>)").check()
    assert shares(page, "out")[0] == 0
    assert page.evaluate("state.hide") is True


def test_the_map_is_square_and_states_the_weight_under_the_mouse(pattern, new_page, tmp_path):
    page = new_page()
    opened(page, viz.token_view(pattern), tmp_path)
    page.get_by_role("tab", name="Map").click()
    assert page.evaluate("state.mode") == "Map"
    for scale, dark in (("0–1", 0.15), ("row max", 0.3), ("log", 1 + np.log10(0.15) / 4)):
        page.get_by_role("combobox").select_option(scale)
        page.mouse.move(0, 0)
        # The mixture of the page's white and the ramp's blue, at query 3 and key 1.
        blue = tuple(round(255 + (end - 255) * dark) for end in (8, 48, 107))
        at = screen.off_centre(screen.pixels(page, ".cells canvas"), blue, 0.5, 0.5)
        page.mouse.move(*at)
        expect(page.locator(".tip")).to_have_text("0.150 probabilityquery 3 ·ékey 1 <b>bold</b>")
    size = page.locator(".cursor").bounding_box()
    assert size["width"] == pytest.approx(size["height"])
    page.mouse.click(*at)
    assert page.evaluate("state.token") == 3
    grid = page.get_by_role("grid")
    grid.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowUp")
    expect(page.get_by_role("gridcell")).to_have_attribute(
        "aria-label", "0.200 probability, query 2 ⏎, key 0 <bos>"
    )
    page.keyboard.press("End")
    expect(page.get_by_role("gridcell")).to_have_attribute("aria-label", re.compile("0: masked"))


def test_lines_are_solid_to_keys_and_dashed_from_queries(pattern, new_page, tmp_path):
    page = new_page()
    opened(page, viz.token_view(pattern, state={"mode": "Lines", "scale": "0–1"}), tmp_path)
    canvas = page.locator("canvas")
    before = canvas.screenshot()
    frame = canvas.bounding_box()
    page.mouse.move(frame["x"] + 5, frame["y"] + 17 * 2.5)
    expect(page.locator(".said.out")).to_contain_text("1 <b>bold</b> attends to: 0 <bos>  0.900")
    assert canvas.screenshot() != before
    page.mouse.click(frame["x"] + 5, frame["y"] + 17 * 2.5)
    assert page.evaluate("state.token") == 1


def test_thumbnails_pick_the_head_that_is_drawn_on_its_tokens(new_page, tmp_path):
    weights = np.tile(np.tril(np.ones((6, 6))) / np.arange(1, 7)[:, None], (5, 3, 1, 1))
    weights[3, 1] = np.eye(6)
    tokens = ("query", [f"t{at}" for at in range(6)])
    maps = xr.DataArray(weights, dims=("layer", "head", "query", "key"), coords={"token": tokens})
    page = new_page()
    opened(page, viz.token_view(maps), tmp_path)
    expect(page.locator(".said.out")).to_contain_text("attends to: 0 t0  0.167")
    head = page.get_by_role("grid").bounding_box()
    side = page.locator(".picked").bounding_box()
    assert head["width"] > 3 * side["width"]
    page.mouse.click(side["x"] + 1.9 * side["width"], side["y"] + 3.1 * side["height"])
    expect(page.locator(".title").nth(1)).to_have_text("Attention: L3H1")
    expect(page.locator(".said.out")).to_have_text("5 t5 attends to: 5 t5  1.00")


def test_the_column_of_a_hidden_first_token_is_hatched_like_masked_cells(
    pattern, new_page, tmp_path
):
    """Not white, which would be a weight of 0."""
    page = new_page()
    opened(page, viz.token_view(pattern, state={"mode": "Map", "scale": "0–1"}), tmp_path)
    # The weight of query 1 on key 0, 0.9; two cells to the right of it one is masked.
    blue = tuple(round(255 + (end - 255) * 0.9) for end in (8, 48, 107))
    top, bottom, left, right = screen.box(screen.pixels(page, ".cells canvas"), blue)
    page.get_by_label("Hide first token (<bos>)").check()
    page.mouse.move(0, 0)
    picture = screen.pixels(page, ".cells canvas")[top : bottom + 1]
    hidden, masked = (picture[:, left + by : right + 1 + by] for by in (0, 2 * (right - left + 1)))
    assert (hidden.max(axis=-1) == hidden.min(axis=-1)).all(), "no colour of a weight"
    assert hidden.min() == masked.min() < hidden.max() == masked.max()
    expect(page.locator(".legend")).to_contain_text("masked (exactly 0), and the hidden token")
    page.mouse.move((left + right) / 2, (top + bottom) / 2)
    expect(page.locator(".tip")).to_contain_text("hidden in the map: 0.900 probability")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_seen_on_light_and_dark_pages(scheme, pattern, new_page, tmp_path):
    page = new_page(color_scheme=scheme)
    opened(page, viz.token_view(pattern, state={"mode": "Map"}), tmp_path)
    picture = screen.pixels(page, "html").mean(axis=-1)
    picture = picture[picture >= 0]
    ground = 255 if scheme == "light" else 18
    assert np.median(picture) == pytest.approx(ground, abs=3)
    assert abs(picture - ground).max() > 120

"""The views of the browser as pages of their own: what is seen is what is picked and said."""

import re

import numpy as np
import pytest
import screen
import xarray as xr
from browser_views import dense_overview
from playwright.sync_api import Page, expect
from view_pages import opened

from headscope import viz
from headscope.kernels.formatting import amount
from headscope.viz.component import view

pytestmark = pytest.mark.browser
RNG = np.random.default_rng(11)
# Viridis at ninths of its range; every other head of a planted grid is at the low end.
PLANTED = {1.0: (253, 231, 37), 5 / 9: (31, 158, 137), 7 / 9: (110, 206, 88)}


def planted(layers: int, heads: int, places: dict[float, tuple[int, int]]) -> xr.DataArray:
    values = np.zeros((layers, heads))
    for value, place in places.items():
        values[place] = value
    attrs = {"long_name": "Score", "units": "share", "low": 0.0, "high": 1.0}
    return xr.DataArray(values, dims=("layer", "head"), attrs=attrs)


@pytest.mark.parametrize("width", [900, 1280, 1920])
@pytest.mark.parametrize("shape", [(32, 32), (80, 64)])
def test_the_head_under_the_mouse_is_picked(shape, width, new_page, tmp_path):
    page = new_page(width, 2800)
    for _ in range(4):
        cells = RNG.choice(np.prod(shape), size=3, replace=False)
        places = {
            value: tuple(map(int, np.unravel_index(cell, shape)))
            for value, cell in zip(PLANTED, cells, strict=True)
        }
        opened(page, viz.head_grid(planted(*shape, places)), tmp_path)
        picture = screen.pixels(page, ".cells canvas")
        for value, (layer, head) in places.items():
            at = screen.off_centre(picture, PLANTED[value], *RNG.choice([0.02, 0.98], size=2))
            page.mouse.move(*at)
            expect(page.locator(".tip b")).to_have_text(f"L{layer}H{head}  {amount(value)} share")
            page.mouse.click(*at)
            assert page.evaluate("picks.at(-1)") == [layer, head]
    cell = page.locator(".picked").bounding_box()
    assert cell["width"] == pytest.approx(cell["height"])
    assert cell["width"] >= 5


def test_the_keyboard_moves_and_picks_and_a_reader_hears_it(new_page, tmp_path):
    score = planted(4, 8, {1.0: (2, 5)})
    score[1, 5] = np.nan
    page = new_page()
    opened(
        page, viz.head_grid(score, lower=score - 0.1, upper=score + 0.1, picked=(2, 4)), tmp_path
    )
    grid = page.get_by_role("grid")
    expect(grid).to_have_attribute("aria-rowcount", "4")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("gridcell")).to_have_attribute(
        "aria-label", "L2H5  1.00 share, 95 % interval [0.900, 1.10], rank 1 of 31"
    )
    expect(page.get_by_role("status")).to_have_text(
        "L2H5  1.00 share, 95 % interval [0.900, 1.10], rank 1 of 31"
    )
    page.keyboard.press("Enter")
    assert page.evaluate("picks") == [[2, 5]]
    page.keyboard.press("ArrowUp")
    expect(page.get_by_role("status")).to_have_text("L1H5  not measured")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    expect(page.get_by_role("status")).to_contain_text("rank 2 of 31 (30 tied)")
    page.keyboard.press("End")
    page.keyboard.press("Space")
    assert page.evaluate("picks.at(-1)") == [0, 7]
    expect(page.locator(".legend")).to_contain_text("not measured")


def test_numbers_are_written_as_python_writes_them(new_page):
    values = [*(10.0 ** RNG.uniform(-9, 8, 500) * RNG.choice([-1, 1], 500)), 0.0, 99.96, 0.0001]
    page = new_page()
    written = page.evaluate(f"(values) => {{ {view.script()} return values.map(amount); }}", values)
    assert written == [amount(value) for value in values]


WEIGHT = (8, 48, 107)


def planted_overview(*places: tuple[int, int], margins: bool = False) -> xr.Dataset:
    """A text of 600 tokens in blocks of 4 whose large weights are in these blocks."""
    weights = np.tril(np.full((600, 600), 1e-6))
    for row, column in places:
        weights[4 * row + 1, 4 * column + 2] = 1.0
    words = [f" w{at % 100}" for at in range(600)]
    words[250:253] = [" <b>", "Needle", "\n"]
    result = dense_overview(weights, 4).assign_coords(token=("query", words))
    return result if margins else result.drop_vars(["received", "entropy"])


def middle(page: Page, place: tuple[int, int], tmp_path) -> tuple[float, float]:
    """Find a block on the screen, by a large weight that is planted there alone."""
    page.mouse.move(0, 0)
    opened(page, viz.long_view(planted_overview(place)), tmp_path)
    page.wait_for_selector(".crumbs [aria-current]")
    return screen.off_centre(screen.pixels(page, ".marks"), WEIGHT, 0.5, 0.5)


@pytest.mark.parametrize("width", [900, 1280, 1920])
def test_a_drag_chooses_the_blocks_that_it_goes_over(width, new_page, tmp_path):
    page = new_page(width, 1000)
    for one, other in (((100, 20), (70, 62)), ((149, 3), (9, 140)), ((33, 31), (34, 31))):
        start, end = middle(page, one, tmp_path), middle(page, other, tmp_path)
        page.mouse.move(*start)
        page.mouse.down()
        page.mouse.move(*end, steps=5)
        page.mouse.up()
        for side, blocks in zip(("queries", "keys"), zip(one, other, strict=True), strict=True):
            first, last = 4 * min(blocks), 4 * max(blocks) + 4
            if last - first > 512:
                first, last = (first + last) // 2 - 256, (first + last) // 2 + 256
            assert page.evaluate(f"state.{side}") == [first, last]
    page.mouse.click(*start)
    assert page.evaluate("[state.queries, state.keys]") == [[70, 198], [62, 190]]
    page.get_by_role("button", name="Whole text (600 tokens)").click()
    assert page.evaluate("[state.queries, state.keys]") == [None, None]


def test_a_long_view_is_worked_by_keys_and_heard(new_page, tmp_path):
    page = new_page()
    opened(page, viz.long_view(planted_overview((90, 40), margins=True)), tmp_path)
    grid = page.get_by_role("grid")
    expect(grid).to_have_attribute("aria-rowcount", "150")
    grid.focus()
    page.keyboard.press("PageDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("gridcell")).to_have_attribute(
        "aria-label",
        re.compile(
            r"^1.00e-06 largest weight, queries 592–595: “ w92 .*nats, keys 4–7: .*receives?"
        ),
    )
    for _ in range(2):
        page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("Shift+ArrowRight")
    expect(page.get_by_text("selected queries 584–595, keys 4–11; Enter")).to_be_attached()
    page.keyboard.press("Enter")
    assert page.evaluate("[state.queries, state.keys]") == [[584, 596], [4, 12]]
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    assert page.evaluate("state.queries[1] - state.queries[0]") == 128
    for name, value in (("first of the queries", 300), ("last of the queries", 309)):
        page.get_by_label(name).fill(str(value))
        page.get_by_label(name).press("Tab")
    assert page.evaluate("state.queries") == [300, 310]


def test_words_are_found_and_a_window_is_put_around_them(new_page, tmp_path):
    page = new_page()
    overview = planted_overview((90, 62), (80, 62), (62, 9), (110, 30))
    overview = overview.assign_coords(roles='{"needle": [[250, 252]]}')
    opened(page, viz.long_view(overview), tmp_path)
    find = page.get_by_label("Find")
    find.fill("W7 W8")
    expect(page.locator(".found")).to_have_text("6 matches")
    find.fill("<B>NEEDLE")
    expect(page.locator(".found")).to_have_text("1 match")
    before = page.locator(".marks").screenshot()
    page.keyboard.press("Enter")
    expect(page.locator(".found")).to_contain_text("1 of 1: token 250, “ w47 w48 w49 <b>Needle ")
    assert page.locator(".marks").screenshot() != before
    # As key, with the first of the two blocks that attend to it most; then as query.
    assert page.evaluate("[state.queries, state.keys]") == [[258, 386], [187, 315]]
    assert page.evaluate("state.find") == "<B>NEEDLE"
    sides = page.locator("select", has=page.locator("option[value=queries]"))
    sides.select_option("queries")
    page.get_by_role("button", name="Next match").click()
    assert page.evaluate("[state.queries, state.keys]") == [[187, 315], [0, 128]]

    places = page.get_by_label("Jump to")
    options = places.locator("option").all_text_contents()
    assert options[0] == "needle: 250–251"
    assert options[1] == "heaviest block off the diagonal, 1: 1.00"
    places.select_option("0")
    page.get_by_role("button", name="Go to the chosen place").click()
    assert page.evaluate("state.queries") == [187, 315]
    places.select_option("1")
    page.get_by_role("button", name="Go to the chosen place").click()
    assert page.evaluate("[state.queries, state.keys]") == [[186, 314], [0, 128]]
    find.fill("nothing of this")
    page.get_by_role("button", name="Next match").click()
    expect(page.locator(".found")).to_have_text("0 matches")


def test_a_page_holds_one_window_and_states_how_to_make_another(pattern, new_page, tmp_path):
    window = pattern.assign_coords(query=[20, 21, 22, 23], key=[8, 9, 10, 11])
    window = window.assign_coords(key_token=("key", list("abcd")))
    page = new_page()
    opened(page, viz.long_view(planted_overview((90, 40)), window=window), tmp_path)
    expect(page.locator(".crumbs")).to_contain_text("queries 20–23, keys 8–11")
    expect(page.get_by_role("option", name="<b>bold</b>")).to_be_visible()
    page.get_by_label("first of the queries").fill("19")
    page.get_by_label("first of the queries").press("Tab")
    expect(page.locator(".note")).to_contain_text("queries=slice(19, 24), keys=slice(8, 12)")
    expect(page.get_by_role("option", name="<b>bold</b>")).to_be_hidden()

"""Real clicks on the Heads screen in Chromium."""

from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from playwright.sync_api import Page, expect

from headscope.probes.prompts import tasks
from headscope.probes.prompts.writing import split

pytestmark = pytest.mark.browser


@pytest.fixture
def page(new_page) -> Page:
    return new_page(1600, 1200)


def settled(page: Page) -> None:
    """Wait until the pattern is drawn and nothing runs."""
    page.wait_for_selector(".st-key-token_view .body > *, .st-key-pattern_chart .js-plotly-plot")
    page.wait_for_selector("[data-testid=stStatusWidget]", state="detached")


def cell(page: Page, layer: int, head: int) -> tuple[float, float]:
    """Find a cell of the grid, off its middle, from where the picked head is outlined."""
    page.wait_for_selector(".st-key-head_grid .picked")
    picked = page.locator(".st-key-head_grid .picked").bounding_box()
    query = parse_qs(urlsplit(page.url).query)
    at = [int(query.get(name, ["0"])[0]) for name in ("layer", "head")]
    side = picked["width"]
    return picked["x"] + side * (head - at[1] + 0.9), picked["y"] + side * (layer - at[0] + 0.1)


def click_head(page: Page, layer: int, head: int) -> None:
    page.mouse.click(*cell(page, layer, head))


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
    page.wait_for_function("location.search.includes('keys=280')")
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


def test_the_grid_has_arrow_keys_of_its_own_and_enter_picks(page, address):
    page.goto(f"{address}/?by=sinks.sink&layer=1&head=1")
    settled(page)
    click_head(page, 2, 2)
    expect(page.get_by_role("heading", name="L2H2")).to_be_visible()
    settled(page)
    grid = page.locator(".st-key-head_grid [role=grid]")
    grid.focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft"):
        page.keyboard.press(key)
    expect(page.locator(".st-key-head_grid [role=status]")).to_contain_text("L3H2")
    expect(page.get_by_role("heading", name="L2H2")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="L3H2")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("heading", name="L2H2")).to_be_visible()


def test_how_the_token_view_stands_is_in_the_link(page, address):
    page.goto(f"{address}/?layer=3&head=0&prompt=1")
    settled(page)
    view = page.locator(".st-key-token_view")
    view.locator("[role=option]").nth(4).click()
    page.wait_for_function("location.search.includes('token=4')")
    view.get_by_role("tab", name="Lines").click()
    page.wait_for_function("location.search.includes('mode=Lines')")
    view.get_by_label("Hide first token (<bos>)").check()
    page.wait_for_function("location.search.includes('hide=True')")
    said = view.locator(".said.out").text_content()
    assert said.startswith("4 ")
    link = page.url
    click_head(page, 3, 1)
    expect(page.get_by_role("heading", name="L3H1")).to_be_visible()
    expect(view.locator(".said.out")).not_to_have_text(said)
    assert "token=4" in page.url

    page.goto("about:blank")
    page.goto(link)
    settled(page)
    expect(view.get_by_role("tab", name="Lines")).to_have_attribute("aria-selected", "true")
    expect(view.locator(".said.out")).to_have_text(said)
    expect(view.get_by_label("Hide first token (<bos>)")).to_be_checked()


def test_a_thumbnail_opens_its_head(page, address):
    page.goto(f"{address}/?view=thumbnails&layer=0&head=0")
    settled(page)
    picked = page.locator(".st-key-thumbnails .picked")
    box = picked.bounding_box()
    page.mouse.click(box["x"] + 5.8 * box["width"], box["y"] + 2.2 * box["height"])
    expect(page.get_by_role("heading", name="L2H5")).to_be_visible()
    page.wait_for_function("location.search.includes('layer=2')")
    assert "view=thumbnails" in page.url


def test_no_request_leaves_the_machine(page, address):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    settled(page)
    local = (address, address.replace("http", "ws"), "data:", "blob:")
    assert [url for url in asked if not url.startswith(local)] == []

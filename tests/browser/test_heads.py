"""Real clicks on the Heads screen in Chromium."""

import re
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page, expect

from headscope.probes.prompts import tasks
from headscope.probes.prompts.writing import split
from headscope.viz._labels import shown_token

pytestmark = pytest.mark.browser
HEAD = re.compile(r"L(\d+)H(\d+)")


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
    # The address leaves out what a run opens with, so the heading says which head it is.
    title = page.get_by_role("heading", name=HEAD).first.inner_text()
    at = [int(part) for part in HEAD.fullmatch(title).groups()]
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

    page.get_by_role("button", name="Download", exact=True).click()
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


@pytest.fixture(scope="module")
def long_text(bundled) -> str:
    told = tasks.make("story", tokenizer=bundled.tokenizer, n=30, seed=3).prompts
    return " ".join([word for prompt in told for word in split(prompt.clean)][:900])


def tokens(page: Page) -> list[str]:
    return page.locator(".st-key-token_view [role=option]").all_text_contents()


def pointed(page: Page) -> tuple[list[int], list[int]]:
    """Read the tokens of the block under the mouse, as its tip says them."""
    output = page.locator(".st-key-long_view .tip").text_content()
    result = re.findall(r"(?:queries|keys) (\d+)–(\d+)", output)
    return tuple([int(first), int(last)] for first, last in result)


@pytest.mark.parametrize("width", [900, 1280, 1920])
def test_a_window_of_a_long_text_is_dragged_and_kept_in_the_link(
    width, new_page, address, bundled, long_text, settle
):
    page = new_page(width, 1200)
    words = [shown_token(word, 200) for word in bundled.to_str_tokens(bundled.encode(long_text))]
    page.goto(f"{address}/?layer=1&head=3&{urlencode({'text': long_text})}")
    view = page.locator(".st-key-long_view")
    view.get_by_role("grid").scroll_into_view_if_needed()
    page.wait_for_selector("[data-testid=stStatusWidget]", state="detached")
    page.wait_for_timeout(500)
    frame = view.locator(".cells").bounding_box()
    ends = []
    for across, down in ((0.3, 0.5), (0.42, 0.63)):
        at = frame["x"] + across * frame["width"], frame["y"] + down * frame["height"]
        page.mouse.move(*at)
        ends.append((at, pointed(page)))
    page.mouse.move(*ends[0][0])
    page.mouse.down()
    page.mouse.move(*ends[1][0], steps=6)
    page.mouse.up()
    (_, (queries, keys)), (_, (last_queries, last_keys)) = ends
    page.wait_for_function(f"location.search.includes('queries={queries[0]}-{last_queries[1]}')")
    page.wait_for_function(f"location.search.includes('keys={keys[0]}-{last_keys[1]}')")
    expected = words[queries[0] : last_queries[1] + 1] + words[keys[0] : last_keys[1] + 1]
    expect(page.locator(".st-key-token_view [role=option]")).to_have_count(len(expected))
    assert tokens(page) == expected

    link = page.url
    grid = view.get_by_role("grid")
    grid.focus()
    for pressed in ("PageUp", "Home", "ArrowDown", "Enter"):
        page.keyboard.press(pressed)
    page.wait_for_function("location.search.includes('queries=0-127')")
    expect(page.get_by_role("heading", name="L1H3")).to_be_visible()
    settle(page)
    page.go_back()
    expect(view.locator(".crumbs")).to_contain_text(f"queries {queries[0]}–{last_queries[1]}")
    view.get_by_role("button", name="Whole text").click()
    page.wait_for_function("!location.search.includes('queries=')")
    expect(page.locator(".st-key-token_view")).to_have_count(0)

    page.goto("about:blank")
    page.goto(link)
    expect(view.locator(".crumbs")).to_contain_text(f"queries {queries[0]}–{last_queries[1]}")
    expect(page.locator(".st-key-token_view [role=option]")).to_have_count(len(expected))
    assert tokens(page) == expected


def test_words_of_a_long_text_are_found(page, address, long_text):
    page.goto(f"{address}/?layer=1&head=3&{urlencode({'text': long_text})}")
    view = page.locator(".st-key-long_view")
    expected = " ".join(long_text.split()[400:402])
    find = view.get_by_label("Find")
    find.fill("nothing")
    # Keys that are typed are not those of the page.
    find.press("ArrowLeft")
    find.fill(expected)
    find.press("Enter")
    count = f" {long_text} ".count(f" {expected} ")
    expect(view.locator(".found")).to_contain_text(f"1 of {count}: token ")
    page.wait_for_function("location.search.includes('find=')")
    expect(view.locator(".found")).to_contain_text(f"1 of {count}: token ")
    expect(page.get_by_role("heading", name="L1H3")).to_be_visible()
    expect(page.locator(".st-key-token_view [role=option]").first).to_be_visible()


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
    output = view.locator(".said.out").text_content()
    assert output.startswith("4 ")
    link = page.url
    click_head(page, 3, 1)
    expect(page.get_by_role("heading", name="L3H1")).to_be_visible()
    expect(view.locator(".said.out")).not_to_have_text(output)
    assert "token=4" in page.url

    page.goto("about:blank")
    page.goto(link)
    settled(page)
    expect(view.get_by_role("tab", name="Lines")).to_have_attribute("aria-selected", "true")
    expect(view.locator(".said.out")).to_have_text(output)
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

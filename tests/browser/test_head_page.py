"""The head page in Chromium: finder, pinned heads, examples, score picker, tabs and Back."""

from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Locator, Page, expect

pytestmark = pytest.mark.browser


@pytest.fixture
def page(new_page) -> Page:
    return new_page(1280, 1400)


def opened(page: Page, address: str, query: str = "") -> None:
    page.goto(f"{address}/?{query}")
    page.wait_for_selector(".st-key-finder [role=option]")
    page.wait_for_selector("[data-testid=stStatusWidget]", state="detached")


def rows(page: Page, key: str) -> Locator:
    return page.locator(f".st-key-{key} [role=option]")


def shows(page: Page, head: str) -> None:
    expect(page.get_by_role("heading", name=head, exact=True)).to_be_visible()


def query_values(page: Page, field: str) -> list[str]:
    return parse_qs(urlsplit(page.url).query).get(field, [])


def test_the_finder_is_walked_by_mouse_and_by_keys(page, address):
    opened(page, address, "by=head_types.induction")
    names = rows(page, "finder").locator("b").all_text_contents()
    assert len(names) == 10
    shows(page, names[0])
    rows(page, "finder").nth(2).click()
    shows(page, names[2])
    page.locator(".st-key-finder [role=listbox]").focus()
    expect(rows(page, "finder").nth(2)).to_have_attribute("aria-selected", "true")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    shows(page, names[4])
    # A Back while the script runs is lost.
    page.wait_for_selector("[data-test-script-state=notRunning]")
    page.go_back()
    shows(page, names[2])
    values = rows(page, "finder").locator(".tail")
    for at in range(10):
        box, frame = (
            where.bounding_box() for where in (values.nth(at), page.locator(".st-key-finder"))
        )
        assert box["x"] + box["width"] <= frame["x"] + frame["width"] + 1, "values are not cut"


def test_pinned_heads_are_in_the_link_and_open_by_their_patterns(page, address):
    opened(page, address, "layer=2&head=5")
    page.locator(".st-key-pin button").click()
    expect(page.locator(".st-key-compare_tray")).to_contain_text("Pinned heads (1 of 6)")
    rows(page, "finder").nth(1).click()
    other = rows(page, "finder").nth(1).locator("b").text_content()
    shows(page, other)
    page.locator(".st-key-pin button").click()
    expect(page.locator(".st-key-compare_tray")).to_contain_text("Pinned heads (2 of 6)")
    page.wait_for_function("location.search.includes('pins=L2H5')")
    assert query_values(page, "pins") == ["L2H5", other]
    picked = page.locator(".st-key-pinned .picked")
    page.locator(".st-key-pinned canvas").scroll_into_view_if_needed()
    box = picked.bounding_box()
    page.mouse.click(box["x"] - 0.3 * box["width"], box["y"] + 0.5 * box["height"])
    shows(page, "L2H5")
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    expect(page.locator(".st-key-compare_tray")).to_contain_text("Pinned heads (2 of 6)")


def test_an_example_opens_its_prompt_with_the_token_locked(page, address):
    opened(page, address, "layer=2&head=5&tab=Examples")
    row = rows(page, "examples").nth(3)
    marked = row.locator("mark").text_content()
    words = row.locator(".tail").text_content().replace(",", "").split()
    prompt, token = words[1], words[3]
    mark, lane = (row.locator(name).bounding_box() for name in ("mark", ".lane"))
    assert lane["x"] - 1 <= mark["x"], "the marked token is in sight"
    assert mark["x"] + mark["width"] <= lane["x"] + lane["width"] + 1
    row.click()
    subject = page.locator(".st-key-token_view [role=option][aria-selected=true]")
    expect(subject).to_have_text(marked)
    expect(subject).to_have_attribute("id", f"token-{token}")
    page.wait_for_function(f"location.search.includes('token={token}')")
    assert query_values(page, "prompt") == ([prompt] if prompt != "0" else [])


def test_scores_are_searched_by_their_titles(page, address):
    opened(page, address, "by=sinks.sink")
    picker = page.locator(".st-key-by input")
    picker.click()
    picker.fill("earlier copy")
    page.get_by_role("option", name="head_types ○ Attention to the token after").click()
    page.wait_for_function("location.search.includes('by=head_types.induction')")
    heading = "Attention to the token after an earlier copy"
    expect(page.get_by_role("heading", name=heading)).to_be_visible()
    page.go_back()
    expect(page.get_by_role("heading", name=heading)).to_have_count(0)


def test_tabs_and_the_key_of_a_query_are_in_the_link(page, address):
    opened(page, address, "layer=2&head=5")
    page.get_by_role("tab", name="Query-key").click()
    page.wait_for_selector(".st-key-terms_chart .js-plotly-plot")
    page.wait_for_function("location.search.includes('tab=Query-key')")
    rows(page, "query_keys").nth(2).click()
    page.wait_for_function("location.search.includes('key_token=')")
    key = query_values(page, "key_token")
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    chosen = page.locator(".st-key-query_keys [role=option][aria-selected=true] .tail")
    expect(chosen).to_have_text(f"token {key[0]}")

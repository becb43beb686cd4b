"""The address and the history of the browser: links stay in the tab, and one Back is one step."""

import re
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Locator, Page, expect

pytestmark = pytest.mark.browser
HEADS = "/?by=head_types.induction&layer=2&head=5&prompt=1"


def query_of(page: Page) -> dict[str, str]:
    """Read what the address says."""
    return {name: values[-1] for name, values in parse_qs(urlsplit(page.url).query).items()}


def shows(page: Page, title: str) -> None:
    expect(page.get_by_role("heading", name=title, exact=True).first).to_be_visible()


def shows_the_head(page: Page) -> None:
    """Find head, score and prompt as `HEADS` asks for them, on the page and in the address."""
    shows(page, "L2H5")
    expect(chosen(page, "by")).to_have_value(re.compile("token after an earlier copy"))
    expect(chosen(page, "prompt")).to_have_value("1")
    view = {"by": "head_types.induction", "layer": "2", "head": "5", "prompt": "1"}
    assert query_of(page).items() >= view.items()


def chosen(page: Page, key: str) -> Locator:
    return page.locator(f".st-key-{key} input")


def pick(page: Page, layer: int, head: int, of: tuple[int, int]) -> None:
    """Click a head of the grid, whose place follows from that of the picked one."""
    picked = page.locator(".st-key-head_grid .picked").bounding_box()
    side = picked["width"]
    page.mouse.click(
        picked["x"] + side * (head - of[1] + 0.5), picked["y"] + side * (layer - of[0] + 0.5)
    )


@pytest.mark.parametrize("title", ["Analyses", "Runs", "Timelines"])
def test_head_score_and_prompt_survive_another_screen_and_back(
    title, new_page, runs_address, open_screen, settle
):
    page = new_page()
    page.goto(f"{runs_address}{HEADS}")
    settle(page)
    start = page.evaluate("history.length")
    open_screen(page, title)
    shows(page, title)
    settle(page)
    assert page.evaluate("history.length") == start + 1
    page.go_back()
    shows_the_head(page)
    page.go_forward()
    shows(page, title)
    settle(page)
    open_screen(page, "Heads")
    shows_the_head(page)


def test_a_pick_of_another_row_and_column_is_one_step_back(new_page, runs_address, settle):
    page = new_page(1280, 1400)
    page.goto(f"{runs_address}/?by=sinks.sink&layer=1&head=1")
    settle(page)
    start = page.evaluate("history.length")
    pick(page, 2, 4, of=(1, 1))
    shows(page, "L2H4")
    settle(page)
    pick(page, 0, 6, of=(2, 4))
    shows(page, "L0H6")
    settle(page)
    assert page.evaluate("history.length") == start + 2
    page.go_back()
    shows(page, "L2H4")
    settle(page)
    page.go_back()
    shows(page, "L1H1")
    assert query_of(page)["by"] == "sinks.sink"
    page.go_forward()
    shows(page, "L2H4")


def test_back_while_a_screen_is_drawn_leads_to_the_view_before(new_page, runs_address, settle):
    page = new_page(1280, 1400)
    page.goto(f"{runs_address}/?by=sinks.sink&layer=1&head=1")
    settle(page)
    start = page.evaluate("history.length")
    pick(page, 2, 4, of=(1, 1))
    # As soon as the address says so, long before the screen stands.
    page.wait_for_function("location.search.includes('head=4')", polling=20)
    page.evaluate("history.back()")
    shows(page, "L1H1")
    settle(page)
    shows(page, "L1H1")
    assert query_of(page).items() >= {"layer": "1", "head": "1"}.items()
    assert page.evaluate("history.length") == start + 1


def test_keys_that_follow_each_other_quickly_end_where_they_lead(new_page, runs_address, settle):
    page = new_page()
    page.goto(f"{runs_address}/?layer=0&head=0&by=sinks.sink")
    settle(page)
    page.evaluate("document.activeElement.blur()")
    for key in ("ArrowRight", "ArrowDown", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
        page.wait_for_timeout(150)
    settle(page)
    title = page.locator("h3", has_text=re.compile(r"^L\d+H\d+$")).inner_text()
    assert title == "L{}H{}".format(*(query_of(page).get(name, "0") for name in ("layer", "head")))
    assert title != "L0H0"


def test_links_between_screens_stay_in_the_tab(new_page, runs_address, settle):
    page = new_page()
    page.goto(f"{runs_address}/runs?run=other")
    shows(page, "Runs")
    settle(page)
    page.get_by_test_id("stMain").get_by_role("link", name="Analyse it").click()
    shows(page, "Analyses")
    settle(page)
    assert query_of(page)["run"] == "other"
    page.go_back()
    shows(page, "Runs")
    settle(page)
    page.get_by_test_id("stMain").get_by_role("link", name="Browse its heads").click()
    expect(chosen(page, "run")).to_have_value("other")
    expect(page.locator(".st-key-head_grid .picked")).to_be_visible()
    assert query_of(page)["run"] == "other"
    assert len(page.context.pages) == 1
    page.go_back()
    shows(page, "Runs")


def test_runs_by_link_mouse_keyboard_and_back(new_page, runs_address, settle):
    page = new_page(1280, 1400)
    page.goto(f"{runs_address}/runs?run=other&new_model=headscope/induction")
    settle(page)
    expect(chosen(page, "new_model")).to_have_value("headscope/induction")
    expect(page.get_by_test_id("stMain")).to_contain_text("/other")
    choose(page, "run", "demo")
    page.wait_for_function("location.search.includes('run=demo')")
    settle(page)
    page.go_back()
    expect(chosen(page, "run")).to_have_value("other")
    settle(page)
    page.locator(".st-key-new_text textarea").focus()
    page.keyboard.type("once upon")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".st-key-new_estimate button")).to_be_enabled()


def test_analyses_by_link_mouse_keyboard_and_back(new_page, runs_address, settle):
    page = new_page(1280, 1400)
    page.goto(f"{runs_address}/analyses?run=demo&question=sink_behavior&analysis=massive")
    shows(page, "massive")
    settle(page)
    choose(page, "analysis", "sinks")
    shows(page, "sinks")
    settle(page)
    assert query_of(page).items() >= {"analysis": "sinks", "question": "sink_behavior"}.items()
    page.go_back()
    shows(page, "massive")


def test_timelines_by_link_keyboard_back_and_download(new_page, runs_address, settle, tmp_path):
    page = new_page(1280, 1400)
    page.goto(f"{runs_address}/timelines?timeline=emergence&score=previous_token")
    shows(page, "Timelines")
    settle(page)
    expect(chosen(page, "score")).to_have_value("previous_token")
    choose(page, "score", "induction")
    page.wait_for_function("location.search.includes('score=induction')")
    settle(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV", exact=True).click()
    download.value.save_as(tmp_path / "lines.csv")
    lines = (tmp_path / "lines.csv").read_text().splitlines()
    assert "induction" in lines[0]
    assert len(lines) == 1 + 3 * 8
    page.go_back()
    expect(chosen(page, "score")).to_have_value("previous_token")


def choose(page: Page, key: str, option: str) -> None:
    """Choose from a list with the keyboard alone."""
    chosen(page, key).focus()
    page.keyboard.type(option)
    page.keyboard.press("Enter")


@pytest.mark.parametrize(("path", "title"), [("", "Heads"), ("heads", "Heads"), ("runs", "Runs")])
def test_the_link_of_the_screen_in_view_is_marked(path, title, new_page, address, settle):
    page = new_page()
    page.goto(f"{address}/{path}")
    settle(page)
    marked = page.locator(".st-key-navigation a").evaluate_all(
        "links => links.filter((a) => getComputedStyle(a).backgroundColor !== 'rgba(0, 0, 0, 0)')"
        ".map((a) => a.innerText)"
    )
    assert marked == [title]

"""Jobs in Chromium: started, left, found again, cancelled; several visitors on one server."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from headscope.app.pipeline import capture_run
from headscope.probes.storage import run_folder
from headscope_benchmarks.sessions import serve
from headscope_benchmarks.sessions import visit as visit_all

pytestmark = pytest.mark.browser
TOKENS = ".st-key-token_view [role=option]"
HOSTILE = "<img src=x onerror=alert(1)> ![i](http://evil.example/i.png) $x^2$ :smile:"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    capture_run(folder / "bare", "headscope/bundled", task="story", number=3, seed=1)
    return folder


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[tuple[str, int]]:
    with serve(place) as started:
        yield started


def tray(page: Page):
    return page.locator(".st-key-job_tray")


def open_screen(page: Page, title: str) -> None:
    page.locator(".st-key-navigation").get_by_role("link", name=title).click()
    page.get_by_role("heading", name=title, exact=True).first.wait_for()


def start(page: Page, name: str) -> None:
    page.get_by_role("heading", name=name, exact=True).wait_for()
    page.locator(".st-key-run_one button").click()
    tray(page).get_by_role("button", name="Cancel").wait_for()


def test_a_job_outlives_keys_navigation_and_its_tab_and_can_be_cancelled(server, place, new_page):
    address, _ = server
    page = new_page()
    page.goto(f"{address}/analyses?run=bare&analysis=reliability")
    start(page, "reliability")
    expect(tray(page)).to_contain_text("reliability on bare")
    expect(tray(page)).to_contain_text("reliability: ")
    page.locator("body").press("ArrowDown")

    open_screen(page, "Runs")
    expect(tray(page)).to_contain_text("reliability on bare")
    expect(tray(page).get_by_role("button", name="Cancel")).to_have_count(1)

    other = page.context.new_page()
    page.close()
    other.goto(f"{address}/analyses?run=bare&analysis=reliability")
    expect(tray(other)).to_contain_text("reliability on bare")
    expect(other.locator(".st-key-run_one button")).to_be_disabled()

    stranger = new_page()
    stranger.goto(address)
    expect(tray(stranger)).to_contain_text("Busy: 1 job of other visitors")
    expect(tray(stranger)).not_to_contain_text("reliability")
    expect(tray(stranger).get_by_role("button")).to_have_count(0)

    tray(other).get_by_role("button", name="Cancel").click()
    expect(tray(other)).to_contain_text("cancelled. What was finished is kept")
    assert run_folder.open(place / "bare").results() == {}
    expect(tray(stranger)).to_have_count(0)
    tray(other).get_by_role("button", name="Close").click()
    expect(tray(other)).to_have_count(0)


def test_a_what_if_that_waits_is_cancelled_and_answers_nothing(server, place, new_page):
    address, _ = server
    page = new_page()
    page.goto(f"{address}/analyses?run=bare&analysis=reliability")
    start(page, "reliability")
    page.goto(f"{address}/heads?run=bare&layer=1&head=2&tab=What+if")
    page.get_by_role("button", name="Run with and without").click()
    expect(tray(page).get_by_role("button", name="Cancel")).to_have_count(2)
    expect(tray(page)).to_contain_text("L1H2")
    tray(page).get_by_role("button", name="Cancel").last.click()
    expect(tray(page).get_by_role("button", name="Cancel")).to_have_count(1)
    expect(tray(page)).to_contain_text("reliability on bare")
    tray(page).get_by_role("button", name="Cancel").click()
    expect(tray(page).get_by_role("button", name="Cancel")).to_have_count(0)
    expect(page.get_by_text("95 % interval")).to_have_count(0)


def test_a_new_run_is_estimated_captured_analysed_and_browsed(server, place, new_page, first_words):
    address, _ = server
    page = new_page()
    page.goto(address)
    page.locator(".st-key-new_text textarea").fill(f"{first_words}\n{first_words}")
    page.locator(".st-key-new_text textarea").press("Control+Enter")
    page.locator(".st-key-new_name input").fill("mine")
    page.locator(".st-key-new_name input").press("Enter")
    page.locator(".st-key-new_estimate button").click()
    expect(page.locator(".st-key-new_run_estimate")).to_contain_text("tokens")
    page.locator(".st-key-new_start button").click()
    tray(page).get_by_role("link", name="Browse its heads").click()
    page.locator(TOKENS).first.wait_for()
    assert "/heads?" in page.url
    expect(page.locator(".st-key-run input")).to_have_value("mine")
    assert run_folder.open(place / "mine").manifest["n_prompts"] == 2

    page.goto(f"{address}/analyses?run=mine&analysis=sinks")
    page.locator(".st-key-run_one button").click()
    tray(page).get_by_role("link", name="See the heads").last.click()
    page.locator(TOKENS).first.wait_for()
    expect(page.locator(".st-key-by input")).to_have_value(re.compile("^sinks"))
    expect(page.locator(".st-key-run input")).to_have_value("mine")
    assert len(page.context.pages) == 1


def test_a_hostile_prompt_is_text_and_asks_for_nothing(server, new_page):
    address, _ = server
    asked: list[str] = []
    page = new_page()
    page.goto(address)
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: pytest.fail("a script of the prompt ran"))
    page.locator(".st-key-new_text textarea").fill(HOSTILE)
    page.locator(".st-key-new_text textarea").press("Control+Enter")
    page.locator(".st-key-new_estimate button").click()
    expect(tray(page)).to_contain_text("failed: prompts: the tokenizer does not know")
    text = tray(page).inner_text().replace("\u2060", "")
    for part in ("<img", "$x^2$", ":smile:", "![i](http://evil.example/i.png)"):
        assert part in text
    assert tray(page).locator("img, a[href*=evil], .katex").count() == 0
    assert not [url for url in asked if "evil" in url]


def test_an_upload_is_read_and_its_limits_are_stated(server, new_page, tmp_path):
    address, _ = server
    page = new_page()
    page.goto(address)
    page.get_by_text("upload a file").click()
    expect(page.locator(".st-key-new_file")).to_contain_text("at most 20 MB")
    (tmp_path / "bad.csv").write_text("text\nfine\n   \n")
    page.locator(".st-key-new_file input[type=file]").set_input_files(tmp_path / "bad.csv")
    expect(page.get_by_text("bad.csv:3 is empty")).to_be_visible()


def test_eight_visitors_at_once_see_no_error_and_memory_stays_flat(server, browser, first_words):
    words = first_words.split()
    texts = [" ".join([*words[at % 4 :], *words[: at // 4 + 1]]) for at in range(8)]
    assert len(set(texts)) == 8
    result = visit_all(browser, *server, texts, seconds=20)
    assert result.errors == []
    assert result.opened >= 8
    assert result.grown < 0.1 * result.megabytes[-1][1], result.megabytes

"""The benchmark of views: what a page takes, what stops it, and the bars."""

import json
import shutil

import pytest
import views
from playwright.sync_api import sync_playwright

from headscope_benchmarks import machine, pages


def test_a_page_is_timed_until_it_is_drawn(tmp_path, monkeypatch):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on the path")
    late = "<body><script>setTimeout(() => document.body.append(document.createElement('b')), {})"
    for name, wait in (("late", 700), ("never", 10**8)):
        (tmp_path / f"{name}.html").write_text(f"{late.format(wait)}</script>")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        drawn = pages.draw(browser, tmp_path / "late.html", "b", tmp_path)
        assert drawn.seconds is not None
        assert drawn.seconds > 0.7
        monkeypatch.setattr(pages, "LIMIT", 1.0)
        never = pages.draw(browser, tmp_path / "never.html", "b", tmp_path)
        browser.close()
    assert never == pages.Drawn(0, None, "not drawn within 1 s")


def test_scripts_are_found_in_packages_that_were_fetched(tmp_path):
    for place in ("d3-5.7.0/package/dist/d3.min.js", "require.js-2.3.6/package/require.js"):
        file = tmp_path / place
        file.parent.mkdir(parents=True)
        file.write_text("//")
    base = "https://cdnjs.cloudflare.com/ajax/libs"
    assert pages.local(f"{base}/d3/5.7.0/d3.min.js", tmp_path).name == "d3.min.js"
    result = pages.local(f"{base}/require.js/2.3.6/require.min.js", tmp_path)
    assert result == tmp_path / "require.js-2.3.6/package/require.js"
    assert pages.local("https://example.org/d3.js", tmp_path) is None


def test_bars_are_medians_of_what_was_measured():
    visits = [{"seconds": 1.0 + at, "http_bytes": 1000 * at} for at in range(3)]
    empty = [{"seconds": 9.0, "http_bytes": 400}]
    result = views.bars({"clicks": [0.1, 0.2, 5.0], "warm": visits, "empty, compressed": empty})
    assert [value for value, _ in result.values()] == [0.2, 2.0, 600.0]
    assert list(result) == list(views.BARS)


def test_committed_results_state_why_a_view_was_not_drawn():
    files = sorted(machine.RESULTS.glob("views-*.json"))
    assert files
    for file in files:
        for row in json.loads(file.read_text(encoding="utf-8"))["pages"]["rows"]:
            assert (row["drawn_s"] is None) == bool(row["failed"])
            if row["view"].startswith("headscope"):
                assert row["drawn_s"] is not None

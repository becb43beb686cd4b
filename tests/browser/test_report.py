"""The report opens from disk, without a server and without a network."""

import pytest

from headscope.app.report import build
from headscope.probes.storage import run_folder

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn_from_disk(scheme, demo_run, tmp_path, new_page):
    path = build.write_report(run_folder.open(demo_run), tmp_path)
    asked: list[str] = []
    page = new_page(color_scheme=scheme)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    places = page.locator(".plot").count()
    drawn = page.locator(".plot .main-svg").evaluate_all(
        "all => new Set(all.map(one => one.closest('.plot').id)).size"
    )
    # Text on its background, as the reader sees it.
    title = page.locator(".plot .gtitle").first.evaluate("one => getComputedStyle(one).fill")
    body = page.evaluate("getComputedStyle(document.body).color")
    narrow = page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert places == drawn > 8
    assert asked == [path.as_uri()]
    assert title == body
    assert narrow

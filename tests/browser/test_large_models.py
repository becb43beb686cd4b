"""Models of many heads in the dashboard: the head that is seen is the head that is opened."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import screen
from dashboard_server import served
from playwright.sync_api import expect

from headscope_benchmarks.random_model import random_run

pytestmark = pytest.mark.browser
# Viridis at ninths of its range; every other head is at the low end.
PLANTED = {1.0: (253, 231, 37), 5 / 9: (31, 158, 137), 7 / 9: (110, 206, 88)}
HEADS_AT = {(32, 32): [(3, 3), (17, 20), (31, 30)], (80, 64): [(1, 63), (41, 17), (79, 40)]}


@pytest.fixture(scope="module", params=HEADS_AT, ids=str)
def large(request, tmp_path_factory) -> Iterator[tuple[str, dict[float, tuple[int, int]]]]:
    """A random model of this many layers and heads, whose sink scores are planted."""
    run = random_run(tmp_path_factory.mktemp("large"), request.param, ("sinks",))
    result = run.results()["sinks"]
    values = np.zeros(request.param)
    places = dict(zip(PLANTED, HEADS_AT[request.param], strict=True))
    for value, place in places.items():
        values[place] = value
    planted = result.copy()
    planted["sink"] = result["sink"].copy(data=values).assign_attrs(low=0.0, high=1.0)
    run.save_result("sinks", planted)
    with served(Path(run.path)) as address:
        yield address, places


@pytest.mark.parametrize("width", [900, 1280, 1920])
def test_the_head_under_the_mouse_is_opened(large, width, new_page):
    address, places = large
    page = new_page(width, 2600)
    page.goto(f"{address}/?by=sinks.sink&layer=5&head=5")
    page.wait_for_selector(".st-key-token_view [role=option]")
    for value, (layer, head) in places.items():
        page.wait_for_selector("[data-testid=stStatusWidget]", state="detached")
        page.mouse.move(5, 5)
        picture = screen.pixels(page, ".st-key-head_grid canvas")
        page.mouse.click(*screen.off_centre(picture, PLANTED[value], 0.95, 0.05))
        expect(page.get_by_role("heading", name=f"L{layer}H{head}", exact=True)).to_be_visible()
        expect(page).to_have_url(re.compile(f"layer={layer}"))

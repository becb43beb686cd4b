"""The screen Circuit in Chromium: mouse, keyboard, link, Back, files, and a what-if."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import axe
import pandas as pd
import pytest
from dashboard_server import served
from playwright.sync_api import Locator, Page, expect

from headscope.analyses.comparison import load
from headscope.app.dashboard.components import circuit_graph
from headscope.app.pipeline import analyze_run, capture_run
from headscope.probes.storage import run_folder

pytestmark = pytest.mark.browser
OPTIONS = {
    "edge_circuits": {"steps": 1, "draws": 2, "minimal": 2},
    "edge_attribution": {"steps": 1, "edges": 8, "sample": 8, "patched_prompts": 1},
}
GRAPH = "edge_circuits.circuit_score"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "edges"
    captured = capture_run(folder, "headscope/bundled", task="ioi", number=4, seed=1)
    analyze_run(captured, tuple(OPTIONS), options=OPTIONS, number=4)
    return folder


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    with served(run) as address:
        yield address


@pytest.fixture(scope="module")
def heads(run: Path) -> list[str]:
    """The heads that the strongest 20 edges of the circuit join, by layer."""
    score = run_folder.open(run).results()["edge_circuits"]["circuit_score"]
    return list(circuit_graph.heads(score.isel(edge=circuit_graph.shown(score, 20))))


def drawn(page: Page, settle) -> None:
    page.wait_for_selector(".st-key-circuit .js-plotly-plot .main-svg")
    settle(page)


def spot(page: Page, words: str) -> tuple[float, float]:
    """Find the mark whose hover text begins so, in pixels: of a node, or else of an edge."""
    return tuple(
        page.evaluate(
            """(words) => {
                const plot = document.querySelector('.st-key-circuit .js-plotly-plot');
                plot.scrollIntoView({block: 'center', behavior: 'instant'});
                const {xaxis, yaxis} = plot._fullLayout, box = plot.getBoundingClientRect();
                // Nodes are drawn last.
                for (const points of [...plot.calcdata].reverse()) for (const point of points) {
                    const text = [points[0].trace.hovertext ?? []].flat()[point.i] ?? '';
                    if (!text.replace('<b>', '').startsWith(words)) continue;
                    return [box.x + xaxis._offset + xaxis.c2p(point.x),
                            box.y + yaxis._offset + yaxis.c2p(point.y)];
                }
            }""",
            words,
        )
    )


def click(page: Page, words: str, right: float = 0, down: float = 0) -> None:
    x, y = spot(page, words)
    page.mouse.move(x + right, y + down)
    page.wait_for_timeout(200)
    page.mouse.click(x + right, y + down)


def ringed(page: Page) -> list[str]:
    """Read the names of the nodes that the figure rings."""
    return page.evaluate(
        """document.querySelector('.st-key-circuit .js-plotly-plot').layout.annotations
            .filter((note) => note.borderwidth > 1).map((note) => note.text)"""
    )


def chips(page: Page, field: str) -> Locator:
    """Find what is chosen in a list of nodes."""
    return page.locator(f".st-key-{field} [data-tag]")


def expect_address(page: Page, words: str) -> None:
    page.wait_for_function(f"location.search.includes('{words}')")


@pytest.mark.parametrize("width", [900, 1280, 1920])
def test_nodes_and_edges_are_picked_off_their_middle(width, new_page, address, heads, settle):
    page = new_page(width, 1400)
    page.goto(f"{address}/circuit?graph={GRAPH}&edges=20")
    drawn(page, settle)
    for head, (right, down) in zip((heads[0], heads[-1]), ((9, -7), (-9, 7)), strict=True):
        click(page, head, right, down)
        expect(chips(page, "pin").filter(has_text=head)).to_have_count(1)
        expect_address(page, f"pin={head}")
        settle(page)
        assert head in ringed(page)
    # A second and a third click on the same node take it out and pin it again.
    for count in (0, 1):
        click(page, heads[-1], 8, 6)
        expect(chips(page, "pin").filter(has_text=heads[-1])).to_have_count(count)
        settle(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_an_edge_states_its_weight_under_the_mouse_and_pins_its_source(
    new_page, address, run, settle
):
    result = run_folder.open(run).results()["edge_circuits"]
    score = result["circuit_score"]
    at = circuit_graph.strongest(score)[0]
    source, target = (side[at] for side in circuit_graph.ends(score))
    page = new_page()
    page.goto(f"{address}/circuit?edges=20")
    drawn(page, settle)
    letter = result["input"].values[at]
    name = f"{source} → {target}{'.' * bool(letter)}{letter}"
    x, y = spot(page, name)
    page.mouse.move(x + 3, y - 3)
    label = page.locator(".st-key-circuit .hoverlayer")
    expect(label).to_contain_text(name)
    expect(label).to_contain_text(f"Edge attribution: {float(score[at]):.2f} logits")
    expect(label).to_contain_text("95 % interval")
    page.mouse.click(x + 3, y - 3)
    expect_address(page, f"pin={source}")


def test_keys_alone_pick_nodes_edges_and_the_graph(new_page, address, heads, settle):
    page = new_page()
    page.goto(f"{address}/circuit?edges=20")
    drawn(page, settle)
    for field, head in (("pin", heads[-1]), ("expand", heads[0])):
        box = page.locator(f".st-key-{field} input")
        box.focus()
        page.keyboard.type(head)
        page.keyboard.press("Enter")
        expect_address(page, f"{field}={head}")
        settle(page)
    assert ringed(page) == [heads[-1]]
    page.locator(".st-key-pin input").focus()
    page.keyboard.press("Backspace")
    expect(chips(page, "pin")).to_have_count(0)
    settle(page)
    page.locator(".st-key-edges [role=radio], .st-key-edges button").first.focus()
    page.keyboard.press("Space")
    expect_address(page, "edges=10")
    page.locator(".st-key-graph input").focus()
    page.keyboard.type("Edge attribution: ")
    page.keyboard.press("Enter")
    expect_address(page, "graph=edge_attribution.edge_score")


def test_a_link_opens_the_same_view_and_back_is_one_step(new_page, address, heads, settle):
    page = new_page()
    link = f"graph={GRAPH}&edges=40&pin={heads[0]}&pin={heads[-1]}&expand=logits"
    page.goto(f"{address}/circuit?{link}")
    drawn(page, settle)
    assert chips(page, "pin").all_inner_texts() == [heads[0], heads[-1]]
    assert chips(page, "expand").all_inner_texts() == ["logits"]
    expect(page.locator(".st-key-graph input")).to_have_value("Edge circuits: Edge attribution")
    assert sorted(ringed(page)) == sorted({heads[0], heads[-1]})
    start = page.evaluate("history.length")
    click(page, heads[0], 6, 6)
    expect(chips(page, "pin")).to_have_count(1)
    settle(page)
    page.get_by_role("link", name=f"Open {heads[-1]} in Heads").click()
    expect(page.get_by_role("heading", name=heads[-1], exact=True).first).to_be_visible()
    settle(page)
    assert page.evaluate("history.length") == start + 2
    page.go_back()
    drawn(page, settle)
    assert chips(page, "pin").all_inner_texts() == [heads[-1]]
    page.go_back()
    expect(chips(page, "pin")).to_have_count(2)
    drawn(page, settle)
    assert sorted(ringed(page)) == sorted({heads[0], heads[-1]})

    page.goto(f"{address}/circuit?pin=L99H0&edges=7")
    drawn(page, settle)
    for words in ("pin = 'L99H0', which is not here", "edges = '7', which is not here"):
        expect(page.get_by_text(words)).to_be_visible()


def test_files_hold_the_edges_that_are_drawn(new_page, address, run, heads, settle, tmp_path):
    result = run_folder.open(run).results()["edge_circuits"]
    places = circuit_graph.shown(result["circuit_score"], 20, [heads[-1]])
    page = new_page()
    page.goto(f"{address}/circuit?graph={GRAPH}&edges=20&pin={heads[-1]}")
    drawn(page, settle)
    for name, file in (("Edges as CSV", "edges.csv"), ("Circuit as JSON", "circuit.json")):
        with page.expect_download() as download:
            page.get_by_role("button", name=name).click()
        download.value.save_as(tmp_path / file)
    edges = pd.read_csv(io.StringIO((tmp_path / "edges.csv").read_text()))
    assert edges["circuit_score"].tolist() == pytest.approx(
        result["circuit_score"].values[places].tolist()
    )
    assert {"model", "task", "run", "circuit_score_units"} <= set(edges.columns)
    assert len(load(tmp_path / "circuit.json").edges) == len(places)
    assert json.loads((tmp_path / "circuit.json").read_text())["provenance"]["task"] == "ioi"


def test_a_what_if_is_cancelled_while_it_waits_and_answered_when_it_runs(
    new_page, address, heads, settle
):
    tray = ".st-key-job_tray"
    page = new_page(1280, 1400)
    page.goto(f"{address}/analyses?analysis=reliability")
    page.get_by_role("heading", name="reliability", exact=True).wait_for()
    page.locator(".st-key-run_one button").click()
    cancel = page.locator(tray).get_by_role("button", name="Cancel")
    expect(cancel).to_have_count(1)
    page.goto(f"{address}/circuit?edges=20&pin={heads[-1]}")
    drawn(page, settle)
    page.get_by_role("button", name="Run with and without").click()
    expect(cancel).to_have_count(2)
    expect(page.locator(tray)).to_contain_text(f"{heads[-1]}: Set the output")
    cancel.last.click()
    expect(cancel).to_have_count(1)
    cancel.click()
    expect(cancel).to_have_count(0)
    expect(page.get_by_text("without edits")).to_have_count(0)

    page.get_by_role("button", name="Run with and without").click()
    expect(page.locator(tray)).to_contain_text("the answer is below the question")
    answer = page.get_by_role("table")
    expect(answer.get_by_text("without edits")).to_be_visible()
    expect(answer.get_by_text("with edits", exact=True)).to_be_visible()
    expect(page.get_by_text("on ioi").last).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_beside_a_graph(scheme, new_page, address, heads, settle):
    page = new_page(color_scheme=scheme)
    page.goto(f"{address}/circuit?edges=20&pin={heads[-1]}")
    drawn(page, settle)
    assert axe.violations(page) == []

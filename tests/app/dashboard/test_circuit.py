"""The screen Circuit: its graph and table against the result, and what is asked of them."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from browser_views import asked, links
from charts import figures
from streamlit.testing.v1 import AppTest

from headscope.app.dashboard.components import circuit_graph
from headscope.app.pipeline import analyze_run, capture_run
from headscope.probes.storage import run_folder

NAME = "sae_circuits"
GRAPH = f"{NAME}.edge_score"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "measured"
    run = capture_run(folder, "headscope/bundled", task="ioi", number=4, seed=1)
    options = {NAME: {"epochs": 3, "trials": 2, "truth_prompts": 2}}
    analyze_run(run, (NAME,), options=options, number=4)
    return folder


@pytest.fixture
def screen(measured: Path, dashboard) -> partial[AppTest]:
    return partial(dashboard, measured, "circuit")


def test_the_strongest_edges_are_drawn_and_stand_in_the_table(screen, measured):
    result = run_folder.open(measured).results()[NAME]
    app = screen(edges="10")
    assert not app.exception
    table = app.main.dataframe[0].value
    order = np.argsort(-result["edge_score"].values, kind="stable")[:10]
    edges = result.isel(edge=order)
    assert table["from"].tolist() == [
        f"L{layer}H{head}"
        for layer, head in zip(edges["source_layer"].values, edges["source_head"].values,
                               strict=True)
    ]  # fmt: skip
    drawn = figures(app)["circuit"]["data"]
    assert set(drawn[-1]["text"]) == {*table["from"], *table["to"]}
    assert {tuple(each) for each in drawn[-1]["customdata"]} == {(n,) for n in drawn[-1]["text"]}


def test_pinned_nodes_leave_the_ways_through_them_and_their_heads(screen, measured):
    result = run_folder.open(measured).results()[NAME]
    strongest = int(result["edge_score"].values.argmax())
    layer, head = (int(result[f"source_{part}"][strongest]) for part in ("layer", "head"))
    name = f"L{layer}H{head}"
    app = screen(pin=name, edges="10")
    assert not app.exception
    table = app.main.dataframe[0].value
    assert 0 < len(table) <= 10
    assert (table["from"] == name).any()
    heads = [asked(link) for link in links(app) if "layer" in asked(link)]
    assert [(each["layer"], each["head"]) for each in heads] == [([str(layer)], [str(head)])]
    assert app.multiselect(key=f"what_if_heads_{name}").value == [name]


def test_ways_are_followed_both_ways_and_weak_edges_of_a_node_can_be_shown():
    names = [("a", "b"), ("b", "c"), ("d", "c"), ("c", "e"), ("d", "f")]
    sides = {"source": ("edge", [one for one, _ in names]),
             "target": ("edge", [two for _, two in names])}  # fmt: skip
    sides |= {f"{side}_layer": ("edge", [0] * 5) for side in ("source", "target")}
    edges = xr.DataArray([5.0, -4.0, 3.0, 2.0, 1.0], dims="edge", coords=sides)
    assert circuit_graph.shown(edges, 4).tolist() == [0, 1, 2, 3]
    assert circuit_graph.shown(edges, 4, pinned=["b"]).tolist() == [0, 1, 3]
    assert circuit_graph.shown(edges, 5, pinned=["f"]).tolist() == [4]
    assert circuit_graph.shown(edges, 2, expanded=["d"]).tolist() == [0, 1, 2, 4]


def test_a_run_without_a_circuit_offers_what_finds_one(dashboard, tmp_path):
    run = capture_run(tmp_path / "bare", "headscope/bundled", task="ioi", number=2, seed=1)
    app = dashboard(run.path, "circuit")
    assert not app.exception
    assert not app.main.dataframe
    assert any(each.key == f"run_{NAME}" for each in app.main.button)

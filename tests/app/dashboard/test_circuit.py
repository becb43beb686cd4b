"""The screen Circuit: its graph and table against the result, and what is asked of them."""

import io
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from browser_views import links, query_of
from charts import figures
from streamlit.testing.v1 import AppTest

from headscope.app.dashboard.components import circuit_graph, what_if
from headscope.app.pipeline import analyze_run, capture_run
from headscope.probes.storage import run_folder

NAME = "sae_circuits"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "measured"
    run = capture_run(folder, "headscope/bundled", task="ioi", number=4, seed=1)
    options = {NAME: {"epochs": 3, "trials": 2, "truth_prompts": 2}}
    analyze_run(run, (NAME,), options=options, number=4)
    return folder


@pytest.fixture(scope="module")
def with_edges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "edges"
    run = capture_run(folder, "headscope/bundled", task="ioi", number=4, seed=1)
    options = {
        "edge_circuits": {"steps": 1, "draws": 2, "minimal": 2},
        "edge_attribution": {"steps": 1, "edges": 8, "sample": 8, "patched_prompts": 1},
    }
    analyze_run(run, tuple(options), options=options, number=4)
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


def test_pinned_nodes_leave_the_paths_through_them_and_their_heads(screen, measured):
    result = run_folder.open(measured).results()[NAME]
    strongest = int(result["edge_score"].values.argmax())
    layer, head = (int(result[f"source_{part}"][strongest]) for part in ("layer", "head"))
    name = f"L{layer}H{head}"
    app = screen(pin=name, edges="10")
    assert not app.exception
    table = app.main.dataframe[0].value
    assert 0 < len(table) <= 10
    assert (table["from"] == name).any()
    heads = [query_of(link) for link in links(app) if "layer" in query_of(link)]
    assert [(each["layer"], each["head"]) for each in heads] == [([str(layer)], [str(head)])]
    assert app.multiselect(key=f"what_if_heads_{name}").value == [name]


def test_a_circuit_is_drawn_by_the_score_that_all_of_its_edges_have(dashboard, with_edges):
    """The loss without an edge is measured for a few edges, and is a column of the table."""
    result = run_folder.open(with_edges).results()["edge_circuits"]
    app = dashboard(with_edges, "circuit", edges="10")
    assert app.selectbox(key="graph").options == [
        "Edge circuits: Edge attribution", "Edge attribution: Edge attribution"
    ]  # fmt: skip
    table = app.main.dataframe[0].value
    order = np.argsort(-np.abs(result["circuit_score"].values), kind="stable")[:10]
    np.testing.assert_allclose(
        table["Edge attribution (logits)"], result["circuit_score"].values[order]
    )
    np.testing.assert_array_equal(
        table["Lost by the circuit without the edge (share)"], result["needed"].values[order]
    )
    assert table["input"].tolist() == [letter or "—" for letter in result["input"].values[order]]
    size, total = result.sizes["edge"], result.attrs["edges"]
    [caption] = [text.value for text in app.main.caption if text.value.startswith("Drawn")]
    assert f"10 of the {size} edges of this result" in caption
    assert f"the model's {total} edges" in caption
    # The answer is asked of the task of the circuit; no text is in view here.
    measured_on = app.selectbox(key="what_if_on")
    assert measured_on.value == "ioi"
    assert what_if.VIEW not in measured_on.options


def test_what_pinned_nodes_hide_is_reported_and_they_are_ringed(dashboard, with_edges):
    app = dashboard(with_edges, "circuit", edges="20")
    drawn = figures(app)["circuit"]["data"][-1]["text"]
    head = next(name for name in drawn if "H" in name)
    app = dashboard(with_edges, "circuit", edges="20", pin=head)
    table = app.main.dataframe[0].value
    captions = " ".join(text.value.replace("\\", "") for text in app.main.caption)
    assert f"Hidden: {20 - len(table)} of the strongest 20, on no path through {head}" in captions
    notes = figures(app)["circuit"]["layout"]["annotations"]
    assert [note["text"] for note in notes if note["borderwidth"] > 1] == [head]


def test_a_node_without_a_strong_edge_states_how_to_show_its_edges(dashboard, with_edges):
    result = run_folder.open(with_edges).results()["edge_circuits"]
    names = circuit_graph.nodes(result["circuit_score"])
    weak = next(
        name for name in names if not circuit_graph.shown(result["circuit_score"], 10, [name]).size
    )
    app = dashboard(with_edges, "circuit", edges="10", pin=weak)
    assert [info.value for info in app.main.info] == [
        f"None of the strongest 10 edges lies on a path through {weak}. Show more edges, or all "
        "edges of a node."
    ]
    app = dashboard(with_edges, "circuit", edges="10", pin=weak, expand=weak)
    table = app.main.dataframe[0].value
    assert ((table["from"] == weak) | (table["to"] == weak)).all()


def test_the_file_of_edges_has_their_numbers_in_full_with_units_and_provenance(with_edges):
    result = run_folder.open(with_edges).results()["edge_attribution"]
    read = pd.read_csv(io.StringIO(circuit_graph.file(result, "edge_score", "edges")))
    assert len(read) == result.sizes["edge"]
    for name in ("edge_score", "edge_score_lower", "edge_effect"):
        np.testing.assert_allclose(read[name], result[name].values, rtol=1e-9)
    assert set(read["edge_score_units"]) == {"logits"}
    about = read[["run", "model", "task", "n_prompts"]].drop_duplicates().values.tolist()
    assert about == [["edges", "headscope/bundled", "ioi", result.attrs["n_prompts"]]]
    assert read["drawn"].sum() == 8


def test_paths_are_followed_both_ways_and_weak_edges_of_a_node_can_be_shown():
    names = [("a", "b"), ("b", "c"), ("d", "c"), ("c", "e"), ("d", "f")]
    sides = {
        side: ("edge", list(column))
        for side, column in zip(("source", "target"), zip(*names, strict=True), strict=True)
    }
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

"""The graph of edges: what stands where, what a line means, and what is left out."""

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

from headscope.viz import _graph_layout as layout
from headscope.viz import graph

Link = tuple[tuple[int, int, str], tuple[int, int, str], str]
EMBEDDING, LOGITS, MLP = (-1, -1, "embedding"), (2, -1, "logits"), (0, -1, "L0.mlp")
LINKS: list[Link] = [
    (EMBEDDING, (0, 1, "L0H1"), "v"),
    ((0, 1, "L0H1"), MLP, ""),
    ((0, 1, "L0H1"), (1, 1, "L1H1"), "q"),
    ((0, 1, "L0H1"), (1, 1, "L1H1"), "k"),
    (EMBEDDING, (1, 1, "L1H1"), "v"),
    ((1, 1, "L1H1"), LOGITS, ""),
]
WEIGHTS = [4.0, 1.0, -2.0, 0.5, 0.25, np.nan]


def edges(links: list[Link], weights: list[float], **attrs: object) -> xr.DataArray:
    coords: dict[str, tuple[str, list]] = {"input": ("edge", [link[2] for link in links])}
    for at, side in enumerate(("source", "target")):
        nodes = [link[at] for link in links]
        coords[f"{side}_layer"] = ("edge", [layer for layer, _, _ in nodes])
        coords[f"{side}_head"] = ("edge", [head for _, head, _ in nodes])
        coords[side] = ("edge", [name for _, _, name in nodes])
    meaning = {"long_name": "Edge attribution", "units": "logits", "scale": "diverging"}
    return xr.DataArray(weights, dims="edge", coords=coords, attrs=meaning | attrs)


@pytest.fixture
def figure() -> go.Figure:
    return graph.figure(edges(LINKS, WEIGHTS), marked=["L0H1"])


def lines(figure: go.Figure) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.mode == "lines"]


def test_the_sign_of_an_edge_is_a_colour_and_a_style_that_the_legend_names(figure):
    styles = {(line.name, line.line.dash, line.line.color) for line in lines(figure)}
    assert styles == {
        ("positive", "solid", graph.POSITIVE), ("negative (dotted)", "dot", graph.NEGATIVE)
    }  # fmt: skip
    named = [line.name for line in lines(figure) if line.showlegend]
    assert sorted(named) == ["negative (dotted)", "positive"]
    marks = dict(zip(figure.data[-2].hovertext, figure.data[-2].marker.color, strict=True))
    assert {colour for words, colour in marks.items() if "-2.00" in words} == {graph.NEGATIVE}


def test_the_strongest_edge_is_the_widest_and_the_weakest_is_seen(figure):
    widths = {line.line.width for line in lines(figure)}
    assert max(widths) == graph.WIDTHS[-1]
    assert min(widths) == graph.WIDTHS[0]
    assert "up to 4.00 logits" in figure.layout.title.subtitle.text


def test_a_mark_states_the_edge_its_input_and_its_weight(figure):
    marks = figure.data[-2]
    assert marks.hovertext[0] == "embedding → L0H1.v<br>Edge attribution: 4.00 logits"
    assert list(marks.text) == ["v", "q", "", "k", "v"]
    assert "1 of 6 edges not measured" in figure.layout.title.subtitle.text


def test_a_node_states_what_leads_to_it_and_from_it(figure):
    output = dict(zip(figure.data[-1].text, figure.data[-1].hovertext, strict=True))
    assert output["L1H1"] == "<b>L1H1</b><br>in: 3 drawn, sum -1.25 logits"
    assert output["L0H1"] == (
        "<b>L0H1</b><br>in: 1 drawn, sum 4.00 logits<br>out: 3 drawn, sum -0.500 logits"
    )


def test_marked_nodes_alone_are_ringed(figure):
    ringed = {note.text for note in figure.layout.annotations if note.bordercolor == graph.RING}
    assert ringed == {"L0H1"}
    assert {note.text for note in figure.layout.annotations} == set(figure.data[-1].text)


def test_an_mlp_stands_below_the_heads_of_its_layer_and_above_the_next(figure):
    down = dict(zip(figure.data[-1].text, figure.data[-1].y, strict=True))
    assert sorted(down, key=down.get) == ["embedding", "L0H1", "L0.mlp", "L1H1"]
    assert list(figure.layout.yaxis.ticktext) == ["", "L0", "", "L1"]
    first, last = figure.layout.yaxis.range
    assert first > last, "layer 0 is at the top"


def test_edges_of_one_pair_run_apart_and_none_runs_behind_the_name_of_another_node():
    array = edges(LINKS, [1.0] * len(LINKS))
    links = list(zip(graph.ends(array, "source"), graph.ends(array, "target"), strict=True))
    nodes = sorted({node for link in links for node in link})
    located = layout.positions(nodes)
    drawn = layout.curves(links, located) * [layout.WIDTH, layout.ROW]
    middle = drawn[:, layout.POINTS // 2]
    assert np.linalg.norm(middle[2] - middle[3]) > layout.MARK
    for link, curve in zip(links, drawn, strict=True):
        for node in set(nodes) - set(link):
            away = np.abs(curve - np.array(located[node]) * [layout.WIDTH, layout.ROW])
            assert (away / layout.NAME).max(axis=-1).min() >= 1, (link, node)
    marks = layout.marks(layout.curves(links, located), located) * [layout.WIDTH, layout.ROW]
    apart = np.linalg.norm(marks[:, None] - marks, axis=-1) + np.eye(len(marks)) * 1000
    assert apart.min() >= layout.MARK


def test_of_many_edges_the_strongest_are_drawn_and_the_figure_states_it():
    figure = graph.figure(edges(LINKS, WEIGHTS), edges=2)
    assert [words.split("<br>")[0] for words in figure.data[-2].hovertext] == [
        "embedding → L0H1.v", "L0H1 → L1H1.q"
    ]  # fmt: skip
    assert "strongest 2 of 5 edges" in figure.layout.title.subtitle.text


def test_edges_without_a_sign_have_no_legend():
    figure = graph.figure(edges(LINKS, list(np.abs(WEIGHTS)), scale="sequential"))
    assert {line.line.color for line in lines(figure)} == {graph.GREY}
    assert not any(trace.showlegend for trace in figure.data)


def test_a_graph_without_a_measured_edge_is_empty_and_states_it():
    figure = graph.figure(edges(LINKS[:2], [np.nan, np.nan]))
    assert not lines(figure)
    assert figure.layout.title.subtitle.text.endswith("2 of 2 edges not measured")

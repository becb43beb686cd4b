"""Every view keeps the promises that readers of a figure rely on."""

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr
from refusals import check_message, check_refusal
from view_arrays import HEADS, LAYERS, array

from headscope import viz
from headscope.viz._scale import GREY

SIZES = {
    "layer": 3, "head": 4, "kv_head": 2, "query": 5, "key": 5, "query_tile": 5, "key_tile": 4,
    "prompt": 2, "type": 2, "offset": 2, "edge": 3, "row": 3, "column": 4, "point": 3, "plane": 2,
    "one": 4, "other": 4, "checkpoint": 3, "condition": 3, "task": 2,
    "removed": 3,
}  # fmt: skip
# view -> dims of the arrays that it alone draws
DRAWN = {
    "number": [""],
    "grid": ["layer head", "head layer", "type layer head", "layer kv_head"],
    "lane": ["query", "key", "query_tile", "prompt key", "layer head query", "query offset"],
    "pattern": ["query key", "query_tile key_tile", "layer head query key"],
    "graph": ["edge"],
    "patches": ["row column", "column row"],
    "points": ["point", "plane point"],
    "matrix": ["one other"],
    "lines": [
        "checkpoint", "checkpoint layer head", "checkpoint condition", "checkpoint type layer head",
        "condition removed", "checkpoint condition removed",
    ],
    "bars": ["condition", "task condition", "layer"],
}  # fmt: skip
CASES = [
    (view, array(*((dim, SIZES[dim]) for dim in dims.split())))
    for view, each in DRAWN.items()
    for dims in each
]
NAMES = [f"{view}-{'-'.join(map(str, each.dims)) or 'scalar'}" for view, each in CASES]


def traces(figure: go.Figure) -> tuple[list[go.Heatmap], list[go.Scatter]]:
    """The heatmaps of a figure, and the traces that have markers."""
    heat = [trace for trace in figure.data if trace.type == "heatmap"]
    return heat, [trace for trace in figure.data if trace.type != "heatmap"]


def test_every_view_is_tested():
    assert set(DRAWN) == set(viz.names())


@pytest.mark.parametrize(("view", "drawn"), CASES, ids=NAMES)
def test_exactly_one_view_accepts(view, drawn):
    assert [name for name in viz.names() if viz.load(name).accepts(drawn)] == [view]
    assert viz.choose(drawn).__name__ == f"headscope.viz.{view}"


@pytest.mark.parametrize(("view", "drawn"), CASES, ids=NAMES)
def test_a_figure_states_what_it_shows_in_which_units(view, drawn):
    figure = viz.choose(drawn).figure(drawn)
    assert isinstance(figure, go.Figure)
    assert "Some score" in figure.layout.title.text
    heat, marked = traces(figure)
    scales = [trace.colorbar for trace in heat if trace.showscale is not False]
    scales += [trace.marker.colorbar for trace in marked if trace.marker.colorscale is not None]
    if view in {"grid", "lane", "pattern", "points", "matrix"}:
        assert {scale.title.text for scale in scales} == {"share"}
    else:
        assert "share" in figure.to_json()


@pytest.mark.parametrize(("view", "drawn"), CASES, ids=NAMES)
def test_the_value_stands_in_the_hover_text(view, drawn):
    value = float(drawn.values.ravel()[0])
    figure = viz.choose(drawn).figure(drawn)
    if view == "number":
        assert f"{value:.3f}" in figure.layout.annotations[0].text
        return
    templates = [trace.hovertemplate for trace in figure.data if trace.hovertemplate]
    texts = [text for trace in figure.data for text in (trace.hovertext, trace.text)]
    assert any("%{z" in template for template in templates) or f"{value:.3f}" in " ".join(
        map(str, texts)
    )


@pytest.mark.parametrize("dims", [(LAYERS, HEADS), (("query", 5), ("key", 5)), (("key", 9),)])
def test_a_declared_range_is_honoured(dims):
    figure = viz.choose(each := array(*dims, low=-0.5, high=2.0)).figure(each)
    assert (-0.5, 2.0) in ranges(figure)


@pytest.mark.parametrize("dims", [(LAYERS, HEADS), (("query", 5), ("key", 5)), (("key", 9),)])
def test_a_diverging_range_is_centred_on_zero(dims):
    data = array(*dims, scale="diverging") - 0.2
    data.attrs.update(scale="diverging", units="logits")
    (bounds,) = ranges(viz.choose(data).figure(data))
    assert bounds[1] == pytest.approx(float(np.abs(data).max()))
    assert bounds[0] == -bounds[1]


def ranges(figure: go.Figure) -> set[tuple[float, float]]:
    heat, marked = traces(figure)
    result = {(trace.zmin, trace.zmax) for trace in heat if trace.name != "missing"}
    markers = [trace.marker for trace in marked]
    return result | {(marker.cmin, marker.cmax) for marker in markers if marker.cmin is not None}


@pytest.mark.parametrize(
    "dims", [(LAYERS, HEADS), (("query", 5), ("key", 5)), (("prompt", 2), ("key", 6))]
)
def test_missing_is_grey_and_not_zero(dims):
    data = array(*dims)
    data[1, 1] = np.nan
    figure = viz.choose(data).figure(data)
    grey = next(trace for trace in figure.data if trace.name == "missing")
    drawn = next(trace for trace in traces(figure)[0] if trace.name != "missing")
    assert {colour for _, colour in grey.colorscale} == {GREY}
    assert np.argwhere(np.isfinite(grey.z)).tolist() == [[1, 1]]
    assert np.isnan(drawn.z[1, 1])
    assert np.isfinite(drawn.z).sum() == data.size - 1
    assert "grey" in figure.layout.title.subtitle.text


def test_a_missing_bar_is_marked_grey():
    data = array(("key", 4))
    data[2] = -np.inf
    figure = viz.choose(data).figure(data)
    assert [(shape.x0, shape.fillcolor) for shape in figure.layout.shapes] == [(1.5, GREY)]
    assert "not measured" in figure.data[0].hovertext[2]


def test_layer_zero_is_at_the_top_and_heads_are_named():
    figure = viz.choose(each := array(LAYERS, HEADS)).figure(each)
    assert figure.layout.yaxis.autorange == "reversed"
    hover = figure.data[-1].hovertext
    assert hover[0][0].startswith("<b>L0H0</b>")
    assert hover[1][1].startswith("<b>L1H1</b>")


def test_the_rank_of_a_head_is_counted_from_the_largest():
    data = array(LAYERS, HEADS)
    data.values = np.arange(12.0).reshape(3, 4)
    hover = viz.choose(data).figure(data).data[-1].hovertext
    assert "rank 12 of 12" in hover[0][0]
    assert "rank 1 of 12" in hover[2][3]


def test_a_subset_of_layers_keeps_its_names():
    data = array(LAYERS, HEADS).assign_coords(layer=[2, 5, 11], head=[0, 3, 6, 9])
    figure = viz.choose(data).figure(data)
    assert figure.data[-1].hovertext[-1][-1].startswith("<b>L11H9</b>")
    assert figure.layout.yaxis.ticktext == ("L2", "L5", "L11")


def test_intervals_are_companions_and_stand_in_the_hover_text():
    mean = array(LAYERS, HEADS)
    lower, upper = (mean * 0 + 0.123).assign_attrs(interval_of="x"), mean * 0 + 0.877
    upper.attrs["interval_of"] = "x"
    data = xr.Dataset({"x": mean, "x_lower": lower, "x_upper": upper})
    assert viz.variables(data) == ["x"]
    assert "95 % interval 0.123 to 0.877" in viz.draw(data, "x").data[-1].hovertext[0][0]


def test_tokens_show_their_whitespace_and_their_position():
    token_texts = [" the", "a\nb", "<bos>", "\t"]
    data = array(("query", 4), ("key", 4)).assign_coords(token=("query", token_texts))
    figure = viz.choose(data).figure(data)
    assert figure.data[0].x == ("0: ·the", "1: a⏎b", "2: &lt;bos&gt;", "3: ⇥")
    lane = array(("query", 4)).assign_coords(token=("query", token_texts))
    assert figure.layout.xaxis.ticktext[0] == "·the"
    assert viz.choose(lane).figure(lane).data[0].hovertext[1].startswith("1: a⏎b<br>")


def test_a_large_map_is_coarsened_to_its_strongest_cells_and_states_it():
    weights = np.zeros((1030, 1030))
    weights[1001, 77] = 0.8
    data = xr.DataArray(weights, dims=("query", "key"), attrs={"units": "share"})
    figure = viz.choose(data).figure(data)
    drawn = figure.data[0]
    assert max(drawn.z.shape) <= 512
    assert drawn.z.max() == pytest.approx(0.8)
    row, column = np.argwhere(drawn.z > 0.5)[0]
    assert (drawn.y[row], drawn.x[column]) == ("999–1001", "75–77")
    assert "strongest of 3 × 3" in figure.layout.title.subtitle.text


def test_points_stand_at_their_places_and_kinds_differ_by_their_shape():
    data = array(("plane", 2), ("point", 3)).assign_coords(plane=["L0H0", "L0H1"])
    data = data.assign_coords(x=(("plane", "point"), [[0.0, 1.0, 2.0], [7.0, 8.0, 9.0]]))
    figure = viz.choose(data).figure(data)
    queries, keys = figure.data
    assert (list(queries.x), list(queries.y)) == ([0.0, 2.0], [5.0, 4.0])
    assert list(keys.x) == [1.0]
    assert queries.marker.symbol != keys.marker.symbol
    assert "query" in figure.layout.title.subtitle.text
    assert keys.hovertext[0].startswith("<b>·the</b>")
    assert "&lt;b&gt;" in queries.hovertext[1]
    second = figure.layout.updatemenus[0].buttons[1]
    assert second.label == "L0H1"
    assert [list(one) for one in second.args[0]["x"]] == [[7.0, 9.0], [8.0]]
    np.testing.assert_allclose(second.args[0]["marker.color"][1], data.values[1, [1]])


def test_points_without_a_place_are_refused():
    check_refusal("view", viz.choose, xr.DataArray([1.0], dims=("point",), name="x"))


def test_a_matrix_names_its_pairs_and_coarsens_when_large():
    data = array(("one", 3), ("other", 3)).assign_coords(one=list("abc"), other=list("abc"))
    data[0, 1] = np.nan
    figure = viz.choose(data.transpose("other", "one")).figure(data.transpose("other", "one"))
    drawn = figure.data[0]
    assert drawn.hovertext[0][1] == "<b>a and b</b><br>Some score: not measured"
    assert np.isnan(drawn.z[0, 1])
    assert figure.layout.yaxis.autorange == "reversed"
    large = viz.choose(many := array(("one", 1030), ("other", 1030))).figure(many)
    assert max(large.data[0].z.shape) <= 512
    assert large.data[0].z[0, 0] == pytest.approx(float(many[:3, :3].max()))
    assert "strongest of 3 × 3" in large.layout.title.subtitle.text


def test_text_of_others_cannot_become_markup():
    data = array(("key", 2), long_name="<img src=x onerror=alert(1)>", units="<b>")
    assert "<img" not in viz.choose(data).figure(data).to_json().replace("&lt;img", "")


@pytest.mark.parametrize(
    "drawn",
    [
        array(("a", 2), ("b", 2), ("c", 2)),
        xr.DataArray(["a", "b"], dims=("condition",)),
        xr.DataArray([1.0], dims=("edge",)),
    ],
    ids=["three dims", "text", "edges without ends"],
)
def test_what_no_view_draws_is_refused(drawn):
    check_refusal("view", viz.choose, drawn)


def test_unknown_names_are_refused():
    check_message("no view is called 'pie'", viz.load, "pie")
    given = xr.Dataset({"x": array(("key", 2))})
    check_message("no variable 'y'; use one of x", viz.draw, given, "y")


def test_keys_with_words_of_their_own_are_labelled_by_them():
    drawn = array(("query", 2), ("key", 2), attention="cross").assign_coords(
        token=("query", ["guten", "Tag"]), key_token=("key", ["good", "day"])
    )
    figure = viz.choose(drawn).figure(drawn)
    assert list(figure.layout.yaxis.ticktext) == ["guten", "Tag"]
    assert list(figure.layout.xaxis.ticktext) == ["good", "day"]
    lane = viz.load("lane").figure(drawn.mean("query"))
    assert list(lane.layout.xaxis.ticktext) == ["good", "day"]


def test_a_window_names_the_words_of_its_keys():
    words = {"token": ("query", ["a", "b"]), "key_token": ("key", ["c", "d"])}
    places = {"query": [7, 8], "key": [2, 3], **words}
    window = xr.DataArray([[0.2, 0.1], [0.3, 0.4]], dims=("query", "key"), coords=places)
    drawn = viz.choose(window).figure(window).data[0]
    assert list(drawn.y) == ["7: a", "8: b"]
    assert list(drawn.x) == ["2: c", "3: d"]


def test_show_shows_the_named_variables_or_all_but_intervals(monkeypatch):
    shown: list[str] = []
    monkeypatch.setattr(go.Figure, "show", lambda figure: shown.append(figure.layout.title.text))
    score, rate = array(LAYERS, HEADS, long_name="Score"), array(long_name="Rate")
    result = xr.Dataset({"score": score, "score_lower": score.copy(), "rate": rate})
    result["score_lower"].attrs["interval_of"] = "score"
    viz.show(result)
    viz.show(result, "rate")
    assert shown == ["<b>Score</b>", "<b>Rate</b>", "<b>Rate</b>"]
    check_refusal("view", viz.show, result, "rate", "rats")
    assert len(shown) == 3


def test_top_lists_heads_by_score_with_what_stands_beside():
    values = np.array([[0.1, -0.9, 0.5, np.nan], [0.2, 0.3, 0.4, 0.0]])
    dims = ("layer", "head")
    layers = {"layer": [2, 5]}
    score = xr.DataArray(values, dims=dims, coords=layers, attrs={"scale": "diverging"})
    cost = xr.DataArray(values.T * 10, dims=("head", "layer"), coords=layers, name="cost")
    result = xr.Dataset({"score": score, "score_lower": score - 1, "score_upper": score + 1})
    table = viz.top(result, "score", cost, number=3)
    # Where the sign means something, by the distance from 0; missing is not 0.
    assert list(table.index) == ["L2H1", "L2H2", "L5H2"]
    assert list(table.columns) == ["score", "score_lower", "score_upper", "cost"]
    np.testing.assert_allclose(table.loc["L2H1"], [-0.9, -1.9, 0.1, -9.0])
    result["score"].attrs["scale"] = "sequential"
    assert list(viz.top(result, "score").index) == ["L2H2", "L5H2", "L5H1", "L5H0", "L2H0"]
    assert "L2H3" not in viz.top(result, "score", number=8).index
    check_message("top: rate has dims", viz.top, result.assign(rate=array()), "score", "rate")
    check_message("top: no variable 'scare'", viz.top, result, "scare")
    keys = xr.Dataset({"rank": array(LAYERS, ("kv_head", 2))})
    names = {f"L{layer}KV{head}" for layer in range(3) for head in range(2)}
    assert set(viz.top(keys, "rank", number=9).index) == names

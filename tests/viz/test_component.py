"""What the browser is sent: exact where it is shown, small, and never markup."""

import json
import math
import re

import numpy as np
import pytest
import xarray as xr
from browser_views import dense_overview, read_codes, unpacked
from refusals import check_refusal

from headscope import viz
from headscope.probes import capture
from headscope.viz.component import view
from headscope.viz.component.token_view import codes

RNG = np.random.default_rng(5)
WORDS = ["<bos>", " a", "\n", "</script><img src=x onerror=alert(1)>", "é"]


def causal(count: int, *heads: int) -> np.ndarray:
    weights = np.tril(RNG.uniform(size=(*heads, count, count)) ** 3)
    return weights / weights.sum(-1, keepdims=True)


def pattern(count: int = len(WORDS), **coords: object) -> xr.DataArray:
    named = {"token": ("query", WORDS[:count])} if count <= len(WORDS) else {}
    attrs = {"long_name": "Attention of L0H1", "units": "probability", "high": 1.0}
    return xr.DataArray(
        causal(count), dims=("query", "key"), coords={**named, **coords}, attrs=attrs
    )


def test_weights_are_sent_as_three_significant_digits():
    weights = np.concatenate([10.0 ** RNG.uniform(-12, 0, 4000), [0.9996, 0.09995, 1.0, 1e-5]])
    for weight, code in zip(weights, codes(weights).tolist(), strict=True):
        shown = float(f"{weight:.2e}")
        place, digits = divmod(code - 1, 900)
        assert math.isclose((100 + digits) * 10.0 ** (place - 42), shown, rel_tol=1e-9)


def test_masked_and_missing_weights_have_codes_of_their_own():
    result = codes(np.array([0.0, np.nan, 1e-45, 5.0]))
    assert result[0] == 0
    assert result[1] == 65535
    assert 0 < result[2] < result[3] < 65535


def test_a_head_without_a_value_is_missing_and_values_are_exact():
    values = RNG.normal(size=(80, 64))
    values[3, 5] = np.nan
    score = xr.DataArray(values, dims=("layer", "head"), attrs={"scale": "diverging"})
    data = viz.head_grid(score, lower=score - 1, upper=score + 1, picked=(3, 5)).data
    np.testing.assert_array_equal(unpacked(data["values"], "<f8").reshape(80, 64), values)
    np.testing.assert_array_equal(unpacked(data["lower"], "<f8").reshape(80, 64), values - 1)
    assert (data["low"], data["high"]) == (-np.nanmax(abs(values)), np.nanmax(abs(values)))
    assert len(json.dumps(data)) < 170_000
    assert data["picked"] == [3, 5]


def test_heads_keep_their_own_numbers_and_layers_without_a_map_are_named():
    coords = {"layer": [4, 7], "head": [0, 3], "attention_map": ("layer", [True, False])}
    score = xr.DataArray(np.ones((2, 2)), dims=("head", "layer"), coords=coords)
    data = viz.head_grid(score).data
    assert (data["layers"], data["heads"], data["absent"]) == (["4", "7"], ["0", "3"], [1])
    grouped = xr.DataArray(np.ones((1, 2)), dims=("layer", "kv_head"))
    assert viz.head_grid(grouped).data["letter"] == "KV"


def test_a_thumbnail_is_the_largest_weight_of_each_block():
    weights = causal(70, 2, 3)
    weights[0, 1, :, 40] = 0
    weights = np.pad(weights, ((0, 0), (0, 0), (0, 6), (0, 6)), constant_values=np.nan)
    maps = xr.DataArray(weights, dims=("layer", "head", "query", "key"), attrs={"high": 1.0})
    data = viz.thumbnails(maps).data
    rows, columns = data["map_shape"]
    result = unpacked(data["maps"], "u1").reshape(2, 3, rows, columns)
    assert (rows, columns) == (24, 24)
    for row in range(24):
        for column in range(24):
            block = weights[
                :, :, 3 * row : min(3 * row + 3, 70), 3 * column : min(3 * column + 3, 70)
            ]
            largest = block.max(axis=(2, 3))
            np.testing.assert_allclose(result[:, :, row, column], 255 * np.sqrt(largest), atol=1)
            assert ((result[:, :, row, column] == 0) == (largest == 0)).all()


def test_one_call_draws_a_whole_layer():
    maps = xr.DataArray(causal(5, 3), dims=("head", "query", "key"), coords={"layer": 2})
    made = viz.token_view(maps.assign_coords(token=("query", WORDS)))
    assert made.kind == "attention_heads"
    assert made.data["heads"]["layers"] == ["2"]
    for head, packed in enumerate(made.data["weights"]):
        np.testing.assert_array_equal(
            unpacked(packed, "<u2").reshape(5, 5), codes(maps.values[head])
        )
    assert made.data["tokens"]["queries"][1:3] == ["·a", "⏎"]


def test_self_attention_has_one_list_of_tokens_and_windows_and_pairs_two():
    assert viz.token_view(pattern(key_token=("key", WORDS))).data["keys"] is None
    other = viz.token_view(pattern(key_token=("key", list("vwxyz")))).data
    assert other["keys"] == list("vwxyz")
    window = {"query": np.arange(8, 13), "key": np.arange(3, 8)}
    moved = viz.token_view(pattern(**window, key_token=("key", WORDS))).data
    assert moved["first"] == [8, 3]
    assert moved["keys"] == moved["queries"]


def test_a_map_of_512_tokens_is_small():
    assert len(json.dumps(viz.token_view(pattern(512)).data)) < 400_000


def test_text_of_a_prompt_is_never_markup():
    page = viz.token_view(pattern()).page()
    assert "<img" not in page
    assert page.count("</script") == page.count("<script") == 1
    assert "http" not in page.replace("http-equiv", "")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", view.script()
    )
    assert not re.search(
        r"\son\w+=", page.replace(json.dumps(WORDS[3])[1:-1].replace("<", "\\u003c"), "")
    )


def test_a_notebook_shows_a_view_and_a_page_is_saved(tmp_path):
    made = viz.head_grid(xr.DataArray([[0.5]], dims=("layer", "head")))
    shown = made._repr_html_()
    assert shown.startswith('<div id="headscope-')
    assert shown.split('"')[1] != made.html().split('"')[1], "two of them share a page"
    assert made.save(tmp_path / "grid.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("state", [{"mode": "Sound"}, {"scale": "huge"}, {"colour": "red"}])
def test_a_state_that_a_token_view_lacks_is_refused(state):
    check_refusal("state", viz.token_view, pattern(), state=state)


@pytest.mark.parametrize(("count", "tile"), [(300, 1), (517, 2), (700, 1)])
def test_joined_blocks_are_those_of_the_whole_matrix(count, tile):
    weights = causal(count)
    data = viz.long_view(dense_overview(weights, tile)).data
    assert data["blocks"] <= 256
    assert (data["tile"], data["length"]) == (-(-count // 256 // tile) * tile, count)
    expected = dense_overview(weights, data["tile"])
    for name in ("pooled_max", "pooled_mean"):
        result = read_codes(data["maps"][name]).reshape(data["blocks"], -1)
        np.testing.assert_allclose(result, expected[name], rtol=5.1e-3, atol=0)
    starts = range(0, count, data["tile"])
    parts = {
        "received": [expected["received"].values[at : at + data["tile"]].max() for at in starts],
        "entropy": [expected["entropy"].values[at : at + data["tile"]].mean() for at in starts],
    }
    for name, values in parts.items():
        np.testing.assert_allclose(read_codes(data["margins"][name]), values, rtol=5.1e-3)


def test_an_overview_of_the_fused_kernels_is_a_dense_pool(bundled):
    ids = list(range(5, 60))
    dense = capture(bundled, [ids], stats=("pattern",))["pattern"].values[0].astype(float)
    stats = ("pooled_max", "pooled_mean", "received", "entropy")
    result = capture(bundled, [ids], stats=stats, tile=3)
    for layer, head in ((0, 0), (2, 5)):
        data = viz.long_view(result.isel(prompt=0, layer=layer, head=head)).data
        expected = dense_overview(dense[layer, head], 3)
        assert data["title"] == f"Attention of L{layer}H{head}"
        for name in ("pooled_max", "pooled_mean"):
            pooled = read_codes(data["maps"][name]).reshape(data["blocks"], -1)
            np.testing.assert_allclose(pooled, expected[name], rtol=5.1e-3, atol=1e-6)


def test_a_long_view_has_the_text_the_roles_and_the_window():
    words = ("query", [WORDS[3], *(f" w{at}" for at in range(39))])
    overview = dense_overview(causal(40), 2)
    overview = overview.assign_coords(roles='{"needle": [[7, 9]]}', token=words)
    window = pattern(5, query=np.arange(8, 13), key=np.arange(3, 8))
    data = viz.long_view(overview, window=window, state={"find": "w3"}).data
    assert json.loads(unpacked(data["tokens"], "u1").tobytes())[0] == WORDS[3]
    assert data["roles"] == {"needle": [[7, 9]]}
    assert data["state"] == {"queries": [8, 13], "keys": [3, 8], "find": "w3"}
    assert data["window"]["first"] == [8, 3]
    assert "<img" not in viz.long_view(overview).page()


def test_an_overview_of_any_length_is_small():
    count, rows = 256, np.arange(256)
    weights = np.where(rows <= rows[:, None], RNG.uniform(size=(count, count)) ** 8, 0)
    overview = dense_overview(weights, 1)
    assert len(json.dumps(viz.long_view(overview).data)) < 260_000


@pytest.mark.parametrize(
    "state",
    [{"map": "sum"}, {"queries": [0, 9]}, {"queries": [0, 9], "keys": [5, 99]}, {"colour": "red"}],
)
def test_a_state_that_a_long_view_lacks_is_refused(state):
    check_refusal("state", viz.long_view, dense_overview(causal(40), 2), state=state)


def filled(value: float, dims: str, *shape: int) -> xr.DataArray:
    return xr.DataArray(np.broadcast_to(value, shape), dims=dims.split())


@pytest.mark.parametrize(
    ("field", "draw", "array"),
    [
        ("array", viz.head_grid, filled(1, "type layer head", 2, 2, 2)),
        ("array", viz.head_grid, filled(1, "head", 2)),
        ("overview", viz.long_view, xr.Dataset({"pooled_max": filled(1, "query key", 2, 2)})),
        ("maps", viz.thumbnails, filled(1, "query key", 2, 2)),
        ("maps", viz.thumbnails, filled(-1, "layer head query key", 1, 1, 2, 2)),
        ("maps", viz.thumbnails, filled(np.nan, "layer head query key", 1, 1, 2, 2)),
        ("pattern", viz.token_view, filled(1, "prompt key", 2, 2)),
        ("pattern", viz.token_view, filled(-1, "query key", 2, 2)),
        ("pattern", viz.token_view, filled(1, "query key", 2049, 2048)),
        ("pattern", viz.token_view, filled(1, "layer head query key", 2, 8, 2048, 2048)),
    ],
)
def test_what_cannot_be_drawn_is_refused(field, draw, array):
    check_refusal(field, draw, array)


def test_a_relevance_view_scales_each_method_and_puts_causal_ones_first():
    array = xr.DataArray(
        [[1.0, -4.0, np.nan], [0.5, 0.25, 0.0], [np.nan] * 3],
        dims=("explainer", "query"),
        coords={
            "explainer": ["Rollout", "replaced", "none"],
            "token": ("query", ["<b>", " a", "\n"]),
        },
    )
    data = viz.relevance_view(array, causal=("replaced",)).data
    assert [row["name"] for row in data["rows"]] == ["replaced", "Rollout"]
    assert data["rows"][1]["shares"] == [0.25, -1.0, None]
    assert data["tokens"] == ["<b>", "·a", "⏎"]
    check_refusal("relevance", viz.relevance_view, array.isel(explainer=0))

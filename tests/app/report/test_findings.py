"""Tables of heads, and the heads that stand out."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from rich.console import Console

from headscope.app.report.findings import findings, findings_table, records
from headscope.app.report.scores import heads_table

GRID = ("layer", "head")


def results(**variables: xr.DataArray) -> dict[str, xr.Dataset]:
    return {"sinks": xr.Dataset(variables)}


def score(values: list[list[float]], **attrs: object) -> xr.DataArray:
    shape = np.shape(values)
    coords = {"layer": np.arange(shape[0]), "head": np.arange(shape[1])}
    return xr.DataArray(values, dims=GRID, coords=coords, attrs=attrs)


def test_one_row_a_head_one_column_a_score():
    result = results(sink=score([[0.1, 0.2], [0.3, np.nan]]), other=score([[1, 2], [3, 4]]))
    table = heads_table(result)
    assert table["name"].tolist() == ["L0H0", "L0H1", "L1H0", "L1H1"]
    assert table["sinks.other"].tolist() == [1, 2, 3, 4]
    assert np.isnan(table["sinks.sink"].iloc[3])


def test_dims_in_another_order_and_further_dims_keep_their_values():
    values, dims = np.arange(12.0).reshape(2, 3, 2), ("head", "layer", "kind")
    array = xr.DataArray(values, dims=dims, coords={"kind": ["a", "b"]})
    table = heads_table(results(mass=array)).set_index("name")
    assert set(table.columns) == {"layer", "head", "sinks.mass[a]", "sinks.mass[b]"}
    assert table.loc["L2H1", "sinks.mass[b]"] == array.values[1, 2, 1]


def test_curves_matrices_and_empty_entries_make_no_columns():
    wide = xr.DataArray(np.ones((2, 2, 9)), dims=(*GRID, "depth"))
    matrix = xr.DataArray(np.ones((2, 2, 2, 2)), dims=(*GRID, "from", "to"))
    half = xr.DataArray(np.full((2, 2, 2), np.nan), dims=(*GRID, "kind"))
    half[..., 1] = 1.0
    table = heads_table(results(wide=wide, matrix=matrix, half=half))
    assert table.columns.tolist() == ["name", *GRID, "sinks.half[kind 1]"]


def test_analyses_of_different_layers_meet_in_one_table():
    late = score([[5.0, 6.0]]).assign_coords(layer=[1])
    table = heads_table(results(sink=score([[1, 2], [3, 4]])) | {"late": xr.Dataset({"x": late})})
    table = table.set_index("name")
    assert table.loc["L1H1", "late.x"] == 6
    assert np.isnan(table.loc["L0H0", "late.x"])


def test_other_variables_make_no_columns():
    result = results(rate=xr.DataArray(0.5), lane=xr.DataArray([1.0], dims="key"))
    assert heads_table(result).columns.tolist() == ["name", *GRID]
    assert findings(result) == []


def test_findings_are_the_first_heads_with_value_rank_and_interval():
    sink = score([[0.1, 0.9], [np.nan, 0.4]], long_name="Sink.", units="share", evidence="causal")
    low = (sink - 0.05).assign_attrs(interval_of="sink")
    high = (sink + 0.05).assign_attrs(interval_of="sink")
    result = findings(results(sink=sink, sink_lower=low, sink_upper=high), top=2)
    assert [(each.name, each.rank, each.of) for each in result] == [("L0H1", 1, 3), ("L1H1", 2, 3)]
    best = result[0]
    assert (best.analysis, best.variable, best.title, best.units) == (
        "sinks", "sink", "Sink", "share",
    )  # fmt: skip
    assert best.evidence == "causal"
    assert (best.value, best.lower, best.upper) == pytest.approx((0.9, 0.85, 0.95))


def test_diverging_scores_are_ranked_by_size():
    result = findings(results(effect=score([[1.0, -3.0], [2.0, 0.0]], scale="diverging")))
    assert [each.name for each in result] == ["L0H1", "L1H0", "L0H0"]
    assert result[0].value == -3
    assert result[0].evidence == "correlational"


def test_heads_without_a_score_do_not_stand_out():
    assert findings(results(flat=score([[0.0, 0.0]]), empty=score([[np.nan, np.nan]]))) == []


def test_equal_heads_share_a_rank_and_are_counted():
    result = findings(results(flag=score([[1.0, 1.0], [0.0, 1.0]])), top=2)
    assert [(each.rank, each.tied) for each in result] == [(1, 3), (1, 3)]


def test_records_hold_no_nan():
    [record] = records(findings(results(sink=score([[0.5]])), top=1))
    assert record["lower"] is None
    assert record["value"] == 0.5


def test_the_terminal_table_names_heads_and_keeps_brackets():
    console = Console(width=80)
    with console.capture() as printed:
        console.print(findings_table(results(sink=score([[0.1, 0.9]], long_name="Share [bold]"))))
    assert "L0H1 0.900" in printed.get()
    assert "Share [bold]" in printed.get()


def test_tables_survive_files(tmp_path):
    table = heads_table(results(sink=score([[0.1, np.nan]])))
    table.to_parquet(tmp_path / "heads.parquet", index=False)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "heads.parquet"), table)

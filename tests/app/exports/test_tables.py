"""Tables of heads say by themselves what their numbers are."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import xarray as xr
from refusals import check_refusal

from headscope.analyses._runtime.results import GRID, Results
from headscope.app.exports import long_table, tables

MANIFEST = {"model": "mine/model", "revision": "r1"}


@pytest.fixture(scope="module")
def results() -> dict[str, xr.Dataset]:
    """One causal and one correlational score of six heads, one head not measured."""
    capture = xr.Dataset(
        coords={"layer": [0, 1], "head": [0, 1, 2]},
        attrs={"model": "mine/model", "revision": "r1", "n_prompts": 20, "task": "ioi"},
    )
    samples = np.random.default_rng(0).normal(1, 0.1, (20, 2, 3))
    held = Results(capture, convention="mean over prompts")
    held.add_mean("lost", GRID, samples, "Lost", "nats", "diverging", evidence="causal")
    held.add("share", GRID, [[0.1, 0.2, 0.3], [0.4, 0.5, np.nan]], "Share", "share")
    return {"mine": held.dataset()}


def read(kind: str, content: bytes) -> pd.DataFrame:
    if kind == "csv":
        return pd.read_csv(io.BytesIO(content))
    if kind == "parquet":
        return pd.read_parquet(io.BytesIO(content))
    return pd.DataFrame(json.loads(content)["heads"])


@pytest.mark.parametrize("kind", tables.FORMATS)
def test_a_row_of_the_long_table_states_what_its_number_is(kind, results):
    rows = read(kind, tables.encode(kind, results, MANIFEST, "run1"))
    assert len(rows) == 12
    row = rows[(rows["variable"] == "lost") & (rows["name"] == "L1H2")].iloc[0]
    lost = results["mine"]["lost"]
    assert row["value"] == pytest.approx(float(lost[1, 2]), rel=1e-12)
    assert row["lower"] < row["value"] < row["upper"]
    output = {name: row[name] for name in ("units", "n", "evidence", "convention", "model", "run")}
    assert output == {
        "units": "nats", "n": 20, "evidence": "causal", "convention": "mean over prompts",
        "model": "mine/model", "run": "run1",
    }  # fmt: skip
    missing = rows[(rows["variable"] == "share") & (rows["name"] == "L1H2")].iloc[0]
    assert missing["evidence"] == "correlational"
    assert pd.isna(missing["value"])
    assert pd.isna(missing["lower"])


@pytest.mark.parametrize("kind", tables.FORMATS)
def test_wide_tables_of_two_runs_can_be_put_together(kind, results):
    both = pd.concat(
        read(kind, tables.encode(kind, results, MANIFEST, name, wide=True)) for name in "ab"
    )
    assert len(both) == 12
    assert not both.duplicated(["model", "revision", "run", "layer", "head"]).any()
    assert both["mine.lost"].notna().all()


def test_columns_of_a_wide_table_are_described_in_parquet_and_json(results):
    content = tables.encode("parquet", results, MANIFEST, "a", wide=True)
    schema = pq.read_schema(io.BytesIO(content))
    expected = {"units": "nats", "n": "20", "evidence": "causal", "convention": "mean over prompts"}
    for name in ("mine.lost", "mine.lost_lower", "mine.lost_upper"):
        output = {key.decode(): text.decode() for key, text in schema.field(name).metadata.items()}
        assert output.items() >= expected.items(), name
    columns = json.loads(tables.encode("json", results, MANIFEST, "a", wide=True))["columns"]
    assert columns["mine.share"]["evidence"] == "correlational"
    assert columns["mine.share"]["units"] == "share"


def test_other_endings_and_runs_without_results_are_refused(results, tmp_path):
    write = tables.write
    check_refusal("out", write, tmp_path / "heads.xlsx", results, MANIFEST, "a")
    check_refusal("run", write, tmp_path / "heads.csv", {}, MANIFEST, "a")
    assert list(tmp_path.iterdir()) == []


def test_results_without_heads_give_the_columns_alone():
    table = long_table.rows({"rollout": xr.Dataset({"x": xr.DataArray(1.0)})}, "a")
    assert table.num_rows == 0
    assert table.schema == long_table.schema()


def test_the_command_writes_what_the_report_does(headscope, demo_run, tmp_path):
    for name, more in (("scores.csv", ()), ("heads.csv", ("--wide",))):
        headscope("export", demo_run, "--out", tmp_path / name, *more).printed()
    headscope("report", demo_run).printed()
    for name in ("scores.csv", "heads.csv"):
        assert (tmp_path / name).read_bytes() == (Path(demo_run) / name).read_bytes()

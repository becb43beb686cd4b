"""The Compare screen says what `headscope compare` says."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from browser_views import browser_views, links, query_of, unpacked
from charts import figures
from streamlit.testing.v1 import AppTest

from headscope.app.pipeline import analyze_run, capture_run
from headscope.probes.storage import run_folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one model on other prompts, both with sinks; one of another shape."""
    place = tmp_path_factory.mktemp("compared")
    for name, model, seed in (
        ("a", "headscope/bundled", 1), ("b", "headscope/bundled", 2),
        ("0-other", "headscope/induction@step1000", 1),
    ):  # fmt: skip
        task = "induction" if "induction" in model else "story"
        run = capture_run(place / name, model, task=task, number=4, seed=seed)
        analyze_run(run, ("sinks",))
    return place


@pytest.fixture
def screen(runs: Path, dashboard) -> partial[AppTest]:
    return partial(dashboard, runs / "a", "compare")


def said(app: AppTest) -> str:
    return " ".join(each.value for each in (*app.markdown, *app.caption, *app.error))


def told(headscope, tmp_path: Path, runs: Path, score: str) -> dict:
    """The row that the command line writes for the same runs."""
    file = tmp_path / "differences.json"
    headscope("compare", runs / "a", runs / "b", "--score", score, "--out", file).printed()
    [row] = json.loads(file.read_text())["scores"]
    return row


@pytest.mark.requirement("D6")
@pytest.mark.parametrize("score", ["sinks.sink", "capture.entropy"])
def test_grids_of_both_runs_and_their_difference_show_what_the_command_prints(
    screen, runs, headscope, tmp_path, score
):
    row = told(headscope, tmp_path, runs, score)
    app = screen(compared=score)
    assert app.selectbox(key="other").value == "b", "one of the same shape comes first"
    views = browser_views(app)
    values = {name: unpacked(views[f"grid_{name}"]["values"], "<f8") for name in "AB"}
    difference = unpacked(views["grid_difference"]["values"], "<f8")
    np.testing.assert_allclose(values["B"] - values["A"], difference, atol=1e-5)
    by_name = {each["head"]: each["difference"] for each in row["heads"]}
    names = [f"L{layer}H{head}" for layer in range(4) for head in range(8)]
    np.testing.assert_allclose(difference, [by_name[name] for name in names], atol=1e-12)
    assert row["summary"].replace("_", r"\_") in said(app)
    assert f"ρ **{row['agreement']:#.3g}**" in said(app)


def test_both_grids_have_one_range_and_the_difference_is_centred(screen):
    views = browser_views(screen(compared="capture.entropy"))
    ends = [(views[key]["low"], views[key]["high"]) for key in ("grid_A", "grid_B")]
    assert ends[0] == ends[1]
    assert views["grid_difference"]["diverging"]
    assert views["grid_difference"]["low"] == -views["grid_difference"]["high"]


def test_a_pick_is_shown_in_all_with_intervals_and_opens_in_either_run(screen, runs):
    app = screen(compared="sinks.sink", pick="L2H3")
    views = browser_views(app)
    assert [views[f"grid_{key}"]["picked"] for key in ("A", "B", "difference")] == [[2, 3]] * 3
    table = app.main.table[0].value
    sides = [run_folder.open(runs / name).results()["sinks"] for name in "ab"]
    for shown, interval, side in zip(table["value"], table["95 % interval"], sides, strict=False):
        assert shown.split()[0] == f"{float(side['sink'][2, 3]):#.3g}"
        assert interval.startswith("[")
    opened = [query_of(link) for link in links(app) if "in Heads" in link.label]
    for link, run in zip(opened, "ab", strict=True):
        there = {"run": [run], "by": ["sinks.sink"], "layer": ["2"], "head": ["3"]}
        assert there.items() <= link.items()
    app.selectbox(key="pick").set_value("L0H1").run()
    assert browser_views(app)["grid_difference"]["picked"] == [0, 1]


def test_the_heads_that_differ_most_are_named_in_the_scatter(screen, runs, headscope, tmp_path):
    row = told(headscope, tmp_path, runs, "sinks.sink")
    app = screen(compared="sinks.sink")
    [points] = [head for head in figures(app)["compared_scatter"]["data"] if head.get("text")]
    named = {text for text in points["text"] if text}
    assert {head["head"] for head in row["heads"][:5]} == named
    assert app.dataframe[0].value["head"].tolist() == [head["head"] for head in row["heads"][:10]]


def test_other_shapes_and_other_meanings_are_refused_with_the_reason(screen, runs, demo_run):
    app = screen(other="0-other", compared="sinks.sink")
    assert "heads cannot be matched" in app.error[0].value
    assert app.main.table[0].value["layers × heads"].nunique() == 2
    assert not app.get("plotly_chart")


def test_a_single_run_has_nothing_to_be_held_against(dashboard, tmp_path):
    capture_run(tmp_path / "alone", "headscope/bundled", task="story", number=2, seed=1)
    app = dashboard(tmp_path / "alone", "compare")
    assert "is the only run here" in app.info[0].value

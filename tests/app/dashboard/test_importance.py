"""The Importance screen: against the result of the analysis, and numbers computed another way."""

import io
import json
import shutil
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from browser_views import links, query_of
from charts import figures, numbers
from scipy.stats import spearmanr
from streamlit.testing.v1 import AppTest

from headscope.analyses.comparison import what_if
from headscope.app.dashboard.components import report_form
from headscope.app.dashboard.components.plain import plain
from headscope.app.dashboard.jobs import DONE, QUEUE
from headscope.app.exports import importance_table
from headscope.app.pipeline import analyze_run, capture_run
from headscope.app.report.answer import METHODS
from headscope.probes import interventions as edits
from headscope.probes.storage import run_folder

TIMEOUT = 120


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with importance on 16 prompts, and pruning."""
    folder = tmp_path_factory.mktemp("runs") / "measured"
    run = capture_run(folder, "headscope/bundled", task="story", number=3, seed=1)
    options = {"pruning": {"points": 4, "orders": 2}}
    outcome = analyze_run(run, ("importance", "pruning"), options=options)
    assert set(run.results()) == set(outcome)
    return folder


@pytest.fixture(scope="module")
def result(measured: Path) -> xr.Dataset:
    return run_folder.open(measured).results()["importance"]


@pytest.fixture
def screen(measured: Path, dashboard) -> partial[AppTest]:
    return partial(dashboard, measured, "importance")


def said(app: AppTest) -> str:
    return " ".join(each.value for each in (*app.markdown, *app.caption, *app.warning))


def test_the_header_states_task_metric_prompts_intact_metric_and_null(screen, result):
    text = said(screen())
    assert "Task **ioi**, **16 prompts**; metric: logit difference" in text
    assert f"**{float(result['intact']):#.3g} logits**" in text
    assert f"**{float(result['null_ablation']):#.3g} logits**, the null" in text
    count = len(result.attrs["important_heads"])
    assert f"{count} heads are important" in text or f"{count} head is important" in text


def test_heads_are_ranked_with_intervals_and_verdicts(screen, result):
    app = screen(top="10")
    marks = [trace for trace in figures(app)["ranked"]["data"] if trace.get("customdata")]
    drawn = {name[0]: trace["name"] for trace in marks for name in trace["customdata"]}
    size = np.abs(result["mean_ablation"].values)
    best = [divmod(int(at), size.shape[1]) for at in np.argsort(-size, axis=None)[:10]]
    assert set(drawn) == {f"L{layer}H{head}" for layer, head in best}
    lower, null = result["mean_ablation_lower"].values, float(result["null_ablation"])
    for verdict in {label.rsplit(" (", 1)[0] for label in drawn.values()}:
        meaning = f"{verdict}: {importance_table.VERDICTS[verdict]}"
        assert plain(meaning) in said(app), "the legend's words"
    for layer, head in best:
        is_above = drawn[f"L{layer}H{head}"].startswith(importance_table.ABOVE)
        assert is_above == bool(lower[layer, head] > null)
    ends = {
        name[0]: value - below
        for trace in marks
        for name, value, below in zip(
            trace["customdata"], numbers(trace["x"]), numbers(trace["error_x"]["arrayminus"]),
            strict=True,
        )
    }  # fmt: skip
    for layer, head in best:
        assert ends[f"L{layer}H{head}"] == pytest.approx(lower[layer, head], abs=1e-6)


def test_the_table_is_the_result_and_comes_as_files(screen, measured, result):
    app = screen()
    shown = app.dataframe[0].value
    rows = importance_table.rows(run_folder.open(measured).results())
    assert shown["name"].tolist() == rows["name"].tolist()
    values = result["mean_ablation"].values[rows["layer"], rows["head"]]
    np.testing.assert_array_equal(rows["mean_ablation"], values)
    np.testing.assert_array_equal(np.sort(-np.abs(values)), -np.abs(values))
    run = run_folder.open(measured)
    files = {
        kind: importance_table.file(kind, run.results(), run.manifest, run.name)
        for kind in ("csv", "parquet", "json")
    }
    read = pd.read_csv(io.BytesIO(files["csv"]))
    np.testing.assert_allclose(read["mean_ablation"], values)
    assert set(read["model"]) == {"headscope/bundled"}
    assert read["verdict"].tolist() == rows["verdict"].tolist()
    parquet = pd.read_parquet(io.BytesIO(files["parquet"]))
    np.testing.assert_array_equal(parquet["zero_ablation_lower"], rows["zero_ablation_lower"])
    told = json.loads(files["json"])
    assert told["columns"]["mean_ablation"]["units"] == "logits"
    assert told["columns"]["mean_ablation"]["n"] == 16
    assert len(told["heads"]) == 32


@pytest.mark.unchecked_signatures
def test_verdicts_follow_null_effect_prompts_and_what_was_measured():
    mean = xr.DataArray(
        [[5.0, 1.0], [0.1, np.nan]], dims=("layer", "head"),
        attrs={"effect_heads": "L0H0 L0H1", "units": "logits"},
    )  # fmt: skip
    planted = xr.Dataset(
        {"mean_ablation": mean}, attrs={"n_prompts": 16, "important_heads": ["L0H0"]}
    )
    rows = importance_table.rows({"importance": planted})
    assert dict(zip(rows["name"], rows["verdict"], strict=True)) == {
        "L0H0": "above the null", "L0H1": "detectable", "L1H0": "no detectable effect",
        "L1H1": "not measured",
    }  # fmt: skip
    assert rows["rank"].tolist()[:3] == [1, 2, 3]
    assert rows["rank"].isna().tolist() == [False, False, False, True]
    rows = importance_table.rows({"importance": planted.assign_attrs(n_prompts=15)})
    assert set(rows["verdict"]) == {"too few prompts", "not measured"}


def test_two_methods_are_drawn_against_each_other_with_their_rank_correlation(screen, result):
    app = screen(x="gate gradient", y="mean ablation")
    drawn = figures(app)
    first, second = (
        np.abs(result[name].values).ravel() for name in ("gate_gradient", "mean_ablation")
    )
    expected = spearmanr(first, second).statistic
    assert f"ρ = **{expected:#.3g}**" in said(app)
    cells = numbers(drawn["agreement"]["data"][0]["text"])
    at = [METHODS[name] for name in METHODS if name in result]
    written = cells[at.index("gate gradient")][at.index("mean ablation")]
    assert written.startswith(f"<b>{expected:#.3g}</b><br>[")
    [points] = [trace for trace in drawn["methods_scatter"]["data"] if trace["mode"] != "lines"]
    assert len(points["customdata"]) == 32
    ranks = [np.argsort(np.argsort(-side, kind="stable")) for side in (first, second)]
    apart = int(np.argmax(np.abs(ranks[0] - ranks[1])))
    assert points["text"][apart] == f"L{apart // 8}H{apart % 8}", "the one that disagrees most"


def test_the_link_picks_a_head_and_states_what_is_not_there(screen, result):
    app = screen(pick="L2H5", x="nothing")
    assert app.selectbox(key="pick").value == "L2H5"
    assert app.subheader[1].value == "L2H5"
    assert "'nothing'" in " ".join(warning.value for warning in app.warning)
    table = next(each.value for each in app.main.table if "method" in each.value)
    shown = dict(zip(table["method"], table["value"], strict=True))
    assert shown["mean ablation"].split()[0] == f"{float(result['mean_ablation'][2, 5]):#.3g}"
    app.selectbox(key="pick").set_value("L0H0").run()
    assert app.subheader[1].value == "L0H0"
    [link] = [query_of(each) for each in links(app) if "in Heads" in each.label]
    assert {"run": ["measured"], "layer": ["0"], "head": ["0"]}.items() <= link.items()


def test_the_pruning_curve_stands_beside_random_orders(screen, measured):
    app = screen()
    curve = run_folder.open(measured).results()["pruning"]["curve"]
    lines = figures(app)["pruning_curve"]["data"]
    by_name = {line["name"]: line for line in lines if line.get("name")}
    assert {"greedy", "one shot", "gate gradient", "random"} <= set(by_name)
    greedy = by_name["greedy"]
    np.testing.assert_allclose(numbers(greedy["y"]), curve.sel(order="greedy"), rtol=1e-6)
    assert greedy["x"] == curve["removed"].values.tolist()


def test_what_is_missing_is_offered_with_its_cost_and_then_shown(dashboard, measured, tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(measured, folder, ignore=shutil.ignore_patterns("results", "effects"))
    app = dashboard(folder, "importance")
    assert "Which heads matter was not measured" in said(app)
    assert "How many heads the task can do without was not measured" in said(app)
    for key, reads in (("estimate_importance", "passes ×"), ("run_importance", "**16 prompts**")):
        app.button(key=key).click().run()
        assert QUEUE.wait(TIMEOUT)
        assert [job.state for job in QUEUE.jobs] == [DONE] * len(QUEUE.jobs)
        app.run()
        assert not app.exception
        assert reads in said(app)
    assert len(app.dataframe[0].value) == 32


def test_too_few_prompts_are_reported_and_more_are_offered(dashboard, demo_run):
    app = dashboard(demo_run, "importance")
    assert "3 prompts rank heads and cannot call one important" in said(app)
    assert "More than 3 prompts tell which heads matter" in said(app)
    assert set(app.dataframe[0].value["verdict"]) == {"too few prompts"}
    assert app.button(key="run_importance")


def test_heads_that_are_picked_are_removed_and_the_tokens_shown_before_and_after(
    screen, measured, bundled, result
):
    app = screen(pick="L2H5", prompt="1")
    important = list(result.attrs["important_heads"])
    app.checkbox(key="remove_important").check().run()
    app.button(key="what_if_run").click().run()
    assert QUEUE.wait(TIMEOUT)
    app.run()
    assert not app.exception
    capture = run_folder.open(measured).capture
    ids = [int(value) for value in capture["token_id"].values[1, : int(capture["length"][1])]]
    heads = [(int(name[1]), int(name[3])) for name in dict.fromkeys(("L2H5", *important))]
    expected = what_if(bundled, [ids], [edits.Ablate(tuple(heads))])
    answer = QUEUE.jobs[-1].result
    np.testing.assert_allclose(answer["loss"], expected["loss"], atol=1e-5)
    drawn = figures(app)
    assert "what_if_loss" in drawn
    change = (expected["loss"][1] - expected["loss"][0]).values
    shown = np.array(numbers(drawn["what_if_change"]["data"][0]["y"]), float)
    np.testing.assert_allclose(shown, change, atol=1e-4)


def test_the_report_has_the_sections_that_were_chosen(screen, measured):
    app = screen()
    app.multiselect(key="sections").set_value(["importance"]).run()
    app.button(key="build_report").click().run()
    assert QUEUE.wait(TIMEOUT)
    app.run()
    assert not app.exception
    built: report_form.Built = QUEUE.jobs[-1].result
    assert 'id="importance"' in built.page
    assert 'id="pruning"' not in built.page
    assert 'href="heads.csv"' not in built.page, "nothing stands beside a single page"
    with zipfile.ZipFile(io.BytesIO(built.archive)) as archive:
        assert {"report.html", "heads.csv", "scores.parquet", "report.json"} <= set(
            archive.namelist()
        )
        assert b'href="heads.csv"' in archive.read("report.html")
    app.toggle(key="preview").set_value(True).run()
    assert built.page in [element.proto.srcdoc for element in app.get("iframe")]


def test_an_encoder_or_a_run_without_a_task_is_refused_by_name(dashboard, paired_runs):
    app = dashboard(paired_runs / "cross", "importance")
    assert plain("Does not apply to this run") in said(app)

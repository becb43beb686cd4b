"""The screen Attribution: against the result of the analysis, and the method computed directly."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from browser_views import browser_views, links, query_of
from charts import figures, numbers
from streamlit.testing.v1 import AppTest

from headscope.analyses import _relevance as registry
from headscope.analyses._relevance import target
from headscope.analyses._relevance.trace import Trace
from headscope.app.dashboard.jobs import DONE, QUEUE
from headscope.app.pipeline import analyze_run, capture_run
from headscope.probes.storage import run_folder

TIMEOUT = 120


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "measured"
    run = capture_run(folder, "headscope/bundled", task="ioi", number=3, seed=1)
    options = {"faithfulness": {"steps": 2, "other": "greater_than"}}
    analyze_run(run, ("faithfulness", "routes"), options=options, number=3)
    return folder


@pytest.fixture
def screen(measured: Path, dashboard) -> partial[AppTest]:
    return partial(dashboard, measured, "attribution")


def test_methods_stand_in_order_beside_replacement_and_chance(screen, measured):
    result = run_folder.open(measured).results()["faithfulness"]
    app = screen(task="greater_than")
    assert not app.exception
    table = next(each.value for each in app.main.table if "method" in each.value)
    row = result.sel(task="greater_than")
    gap = (row["insertion"] - row["deletion"]).values
    known = np.isfinite(gap)
    order = row["explainer"].values[known][np.argsort(-gap[known], kind="stable")].tolist()
    assert table["method"].tolist() == order
    assert {"token replacement", "random order", "Raw attention"} <= set(order)


def test_routes_flow_between_positions_and_open_the_heads_that_carry_most(screen, measured):
    result = run_folder.open(measured).results()["routes"]
    app = screen()
    (drawn,) = figures(app)["routes"]["data"]
    route, way = result["route"], result["route"]["way"]
    value = numbers(drawn["link"]["value"])
    # What arrives at the answer's position in the last layer is all of it.
    last = (route["target_layer"] == route["target_layer"].max()) & (way != "MLP")
    node = len(drawn["node"]["label"]) - 1
    arriving = [each for each, to in zip(value, numbers(drawn["link"]["target"]), strict=True)
                if to == node]  # fmt: skip
    assert sum(arriving) == pytest.approx(float(route[last].sum()), rel=1e-4)
    usage = result["head_usage"].values
    most = np.unravel_index(int(usage.argmax()), usage.shape)
    first = query_of(links(app)[-6])
    assert (first["layer"], first["head"]) == ([str(most[0])], [str(most[1])])
    assert first["by"] == ["routes.head_usage"]


def test_without_a_text_of_ones_own_the_tokens_are_those_of_the_analysis(screen, measured):
    result = run_folder.open(measured).results()["faithfulness"]
    view = browser_views(screen())["relevance"]
    assert view["rows"][0]["name"] == "token replacement"
    assert view["rows"][0]["causal"]
    raw = next(row for row in view["rows"] if row["name"] == "Raw attention")
    known = result["relevance"].sel(explainer="Raw attention").values
    np.testing.assert_allclose(raw["shares"], known / np.abs(known).max(), atol=1e-3)


def test_a_text_of_ones_own_is_explained_by_a_job(screen, bundled):
    text = "When Mary and Peter went to the park , Peter gave a lamp to"
    app = screen(text=text)
    app.button(key="explain").click().run()
    assert QUEUE.wait(TIMEOUT)
    assert [job.state for job in QUEUE.jobs] == [DONE]
    app.run()
    assert not app.exception
    view = browser_views(app)["relevance"]
    aim = target.predicted(bundled, bundled.encode(text))
    row = next(row for row in view["rows"] if row["name"] == "Input gradient")
    known = registry.method("input_gradient").relevance(Trace(bundled, aim))
    np.testing.assert_allclose(row["shares"], known / known.max(), atol=1e-3)
    answer = bundled.to_str_tokens(list(aim.answer_ids))[0]
    assert any(f"Why {answer}?" in each.value for each in app.main.markdown)


def test_a_run_without_the_analysis_offers_it(dashboard, tmp_path):
    run = capture_run(tmp_path / "bare", "headscope/bundled", task="ioi", number=2, seed=1)
    app = dashboard(run.path, "attribution")
    assert not app.exception
    assert "relevance" not in browser_views(app)
    assert any(each.key == "run_faithfulness" for each in app.main.button)

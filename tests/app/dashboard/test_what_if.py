"""The what-if panel of the Heads screen, run by Streamlit's own test harness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from headscope.analyses.comparison import what_if
from headscope.app.dashboard import cache
from headscope.app.dashboard.components.what_if import (
    EDITS,
    HIDE,
    MEAN,
    PATTERN,
    TEMPERATURE,
    WINDOW,
    ZERO,
)
from headscope.probes import Model
from headscope.probes.interventions import Ablate, Inject, KnockOut, Temperature, Window
from headscope.probes.prompts import tasks
from headscope.probes.storage import run_folder

MAIN = str(Path(cache.__file__).with_name("main.py"))
KEPT = "what_if_answer"


@pytest.fixture
def screen(demo_run: Path, monkeypatch: pytest.MonkeyPatch):
    """Open the dashboard at one head."""
    monkeypatch.setenv(cache.VARIABLE, str(demo_run))
    monkeypatch.setattr("sys.argv", ["main.py"])
    app = AppTest.from_file(MAIN, default_timeout=90)
    app.query_params.update({"layer": "0", "head": "5"})
    app.run()
    assert not app.exception
    return app


def asked(app: AppTest, kind: str) -> AppTest:
    app.selectbox(key="what_if_edit").set_value(kind).run()
    app.button(key="what_if_run").click().run()
    assert not app.exception
    return app


@pytest.mark.requirement("D5")
def test_the_picked_head_is_edited_and_the_answer_is_that_of_the_function(
    screen: AppTest, demo_run: Path, bundled: Model
) -> None:
    capture = run_folder.open(demo_run).capture
    ids = [int(one) for one in capture["token_id"].values[0, : int(capture["length"][0])]]
    heads = ((0, 5),)
    expected = {
        ZERO: Ablate(heads),
        HIDE: KnockOut(heads, keys=(0,)),
        WINDOW: Window(heads, recent=4, first=0),
        TEMPERATURE: Temperature(heads, 2.0),
        PATTERN: Inject(heads, "previous"),
    }
    assert {*expected, MEAN} == set(EDITS)
    for kind, edit in expected.items():
        app = asked(screen, kind)
        kept = app.session_state[KEPT]
        answer = what_if(bundled, [ids], [edit])
        np.testing.assert_allclose(kept["answer"]["score"], answer["score"], atol=1e-6)
        assert kept["asked"].startswith(f"L0H5: {kind}")
        shown = [table.value for table in app.main.table if "95 % interval" in table.value]
        assert shown[-1][""].tolist() == ["without edits", "with edits", "change"]
    assert float(answer["change"]) != 0.0


def test_own_text_and_tasks_are_asked_too(screen: AppTest, first_words: str) -> None:
    screen.text_area(key="text").set_value(first_words).run()
    app = asked(screen, MEAN)
    answer = app.session_state[KEPT]["answer"]
    assert answer["token"].values.tolist()[1:] == first_words.split()
    app.selectbox(key="what_if_on").set_value("ioi").run()
    app = asked(app, ZERO)
    answer = app.session_state[KEPT]["answer"]
    assert answer.attrs["task"] == "ioi"
    assert "16 prompts of ioi" in answer["score"].attrs["convention"]
    assert tasks.load("ioi").METRIC.replace("_", " ") in answer["score"].attrs["convention"]


def test_another_picked_head_is_offered_and_a_bad_token_is_refused(screen: AppTest) -> None:
    screen.button(key="go_Right").click().run()
    assert screen.multiselect(key="what_if_heads_L0H6").value == ["L0H6"]
    screen.selectbox(key="what_if_edit").set_value(HIDE).run()
    screen.number_input(key="what_if_token").set_value(4000).run()
    app = asked(screen, HIDE)
    assert "KnockOut.keys: no position 4000" in app.error[0].value
    assert KEPT not in app.session_state

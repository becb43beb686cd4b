"""The what-if panel of the Heads screen: a form for every edit, and its answer."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from charts import figures
from pressing import press
from streamlit.testing.v1 import AppTest

from headscope.analyses._interventions.ablation import mean_z
from headscope.analyses.comparison import what_if
from headscope.app.dashboard.components import edit_form
from headscope.app.dashboard.components.plain import plain
from headscope.app.dashboard.components.what_if import KIND
from headscope.app.dashboard.jobs import QUEUE, Job
from headscope.probes import capture, tasks
from headscope.probes import interventions as edits
from headscope.probes.interventions.base import KINDS
from headscope.probes.storage import run_folder


@pytest.fixture
def screen(demo_run: Path, dashboard) -> AppTest:
    """The dashboard at one head."""
    return dashboard(demo_run, tab="What if", layer="0", head="5")


def ask(app: AppTest, kind: str) -> AppTest:
    app.selectbox(key="what_if_edit").set_value(kind).run()
    return press(app, "what_if_run")


def last() -> Job:
    """The last question that was asked."""
    job = QUEUE.jobs[-1]
    assert job.kind == KIND
    return job


@pytest.mark.requirement("D5")
def test_every_edit_of_heads_has_a_form_with_the_answer_of_the_function(screen, demo_run, bundled):
    recorded = run_folder.open(demo_run).capture
    ids = [int(value) for value in recorded["token_id"].values[0, : int(recorded["length"][0])]]
    heads = ((0, 5),)
    mean = mean_z(capture(bundled, [ids], stats=(), keep=("z",)))
    gates = torch.ones(bundled.layers, bundled.heads)
    gates[0, 5] = 0.0
    expected = [
        edits.Ablate(heads),
        edits.Gate(gates),
        edits.Inject(heads, "previous"),
        edits.KnockOut(heads, keys=(0,)),
        edits.Offset(heads, mean),
        edits.Replace(heads, mean),
        edits.ScaleKeys(heads, keys=(0,), factor=0.5),
        edits.Temperature(heads, 2.0),
        edits.Window(heads, recent=4),
    ]
    kinds = edit_form.kinds()
    assert next(iter(kinds)) == "Ablate"
    assert set(kinds) == {type(edit).__name__ for edit in expected}
    assert set(KINDS) - set(kinds) == {"FixPattern", "Blocks"}, "they hold a table for a prompt"
    for edit in expected:
        kind = type(edit).__name__
        ask(screen, kind)
        answer = what_if(bundled, [ids], [edit])
        np.testing.assert_allclose(last().result["score"], answer["score"], atol=1e-6)
        assert last().title.startswith(f"L0H5: {edit_form.title(kinds[kind])}")
        shown = [table.value for table in screen.main.table if "95 % interval" in table.value]
        assert shown[-1][""].tolist() == ["without edits", "with edits", "change"]
        assert float(answer["change"]) != 0.0


def test_a_new_edit_has_a_form(screen, monkeypatch):
    @dataclass(frozen=True)
    class Soften(edits.Temperature):
        """Soften the attention of some heads.

        Attributes
        ----------
        value
            How much; 1 is not at all.
        """

        strength: int = 3

    monkeypatch.setitem(KINDS, "Soften", Soften)
    # The harness runs the script in this process, so it sees the new class.
    app = ask(screen.run(), "Soften")
    assert app.number_input(key="what_if_Soften_strength").value == 3
    assert app.number_input(key="what_if_Soften_value").label == "How much"
    question = "L0H5: Soften the attention of some heads (value 2.0, strength 3), on "
    assert last().title.startswith(question)
    assert [field.name for field in fields(Soften)] == ["heads", "value", "strength"]


def test_the_change_of_the_loss_is_drawn_over_its_own_range(screen):
    app = ask(screen, "Ablate")
    before, after = last().result["loss"].values
    largest = float(np.nanmax(np.abs(after - before)))
    low, high = figures(app)["what_if_change"]["layout"]["yaxis"]["range"]
    assert largest <= high == -low <= 2 * largest


def test_own_text_and_tasks_are_asked_too(screen, first_words):
    screen.text_area(key="text").set_value(first_words).run()
    app = ask(screen, "Replace")
    answer = last().result
    assert answer["token"].values.tolist()[1:] == first_words.split()
    app.selectbox(key="what_if_on").set_value("ioi").run()
    app = ask(app, "Ablate")
    answer = last().result
    assert answer.attrs["task"] == "ioi"
    assert "16 prompts of ioi" in answer["score"].attrs["convention"]
    assert tasks.load("ioi").METRIC.replace("_", " ") in answer["score"].attrs["convention"]


def test_another_picked_head_is_offered_and_bad_tokens_are_refused(screen):
    screen.button(key="go_Right").click().run()
    assert screen.multiselect(key="what_if_heads_L0H6").value == ["L0H6"]
    screen.selectbox(key="what_if_edit").set_value("KnockOut").run()
    for text, output in (
        ("4000", "KnockOut.keys: no position 4000"),
        ("0, x", "KnockOut.keys: '0, x' is no list of positions"),
    ):
        screen.text_input(key="what_if_KnockOut_keys").set_value(text).run()
        app = ask(screen, "KnockOut")
        assert last().error.startswith(output)
        assert plain(output) in app.error[0].value
        assert last().result is None

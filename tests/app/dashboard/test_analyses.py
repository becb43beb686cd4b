"""The Analyses screen: the catalogue for a run, costs first, options from bounds, jobs."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
from pressing import TIMEOUT, press
from streamlit.testing.v1 import AppTest

from headscope import analyses
from headscope.analyses._runtime import cost
from headscope.analyses._runtime.applicability import refusal
from headscope.app.dashboard.components.plain import plain
from headscope.app.dashboard.jobs import DONE, FAILED, QUEUE
from headscope.app.pipeline import analyze_run, capture_run
from headscope.kernels.errors import HeadscopeError
from headscope.probes.storage import run_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run without analyses."""
    capture_run(tmp_path / "bare", "headscope/bundled", task="story", number=2, seed=1)
    return tmp_path / "bare"


@pytest.fixture
def screen(folder: Path, dashboard) -> partial[AppTest]:
    return partial(dashboard, folder, "analyses")


def row(app: AppTest, name: str) -> dict[str, str]:
    return app.dataframe[0].value.set_index("analysis").loc[name].to_dict()


def test_the_catalogue_has_every_analysis_with_question_summary_and_evidence(screen):
    app = screen(analysis="sinks")
    assert app.dataframe[0].value["analysis"].tolist() == analyses.names()
    assert row(app, "sinks")["what it measures"] == analyses.summary("sinks")
    assert row(app, "importance")["question"] == "head importance"
    assert "causal" in row(app, "importance")["evidence"].split(", ")
    assert "causal" not in row(app, "sinks")["evidence"].split(", ")
    assert app.header[0].value == "sinks"


def test_a_link_opens_the_question_and_the_analysis_and_states_what_is_not_there(screen):
    app = screen(question="sink_behavior", analysis="massive")
    assert app.dataframe[0].value["analysis"].tolist() == analyses.families()["sink_behavior"]
    assert app.header[0].value == "massive"
    app = screen(question="nothing", analysis="nowhere")
    output = " ".join(warning.value for warning in app.warning)
    assert "'nothing'" in output
    assert "'nowhere'" in output
    assert len(app.dataframe[0].value) == len(analyses.names())


def test_cost_is_estimated_for_the_options_chosen_and_then_the_analysis_runs(
    screen, folder, bundled
):
    app = screen(analysis="patching")
    assert row(app, "patching")["cost here"] == ""
    app.number_input(key="option_patching_n").set_value(4).run()
    assert "not estimated with these options" in " ".join(each.value for each in app.markdown)
    press(app, "estimate_one")
    [told] = cost.estimate(["patching"], bundled, run_folder.open(folder).prompts(), n=4)
    output = " ".join(each.value for each in app.markdown)
    passes, tokens = re.search(r"([\d.]+) passes × ([\d,]+) tokens", output).groups()
    # The first ablations on a model check its prefixes, too: a twentieth of the passes here.
    assert float(passes) == pytest.approx(told.passes, rel=0.05)
    assert tokens == f"{told.tokens:,}"
    assert app.button(key="estimate_one").disabled
    press(app, "run_one")
    result = run_folder.open(folder).results()["patching"]
    assert result.attrs["n_prompts"] == 4
    assert row(app, "patching")["status"] == "done"
    assert QUEUE.jobs[-1].opens[:2] == (
        "heads",
        {"run": "bare", "by": QUEUE.jobs[-1].opens[1]["by"]},
    )
    assert QUEUE.jobs[-1].opens[1]["by"].startswith("patching.")


def test_all_costs_are_estimated_by_one_job(screen, monkeypatch):
    monkeypatch.setattr(analyses, "names", lambda: ["entropy", "importance", "sinks"])
    app = press(screen(), "estimate_all")
    assert "passes" in row(app, "importance")["cost here"]
    assert app.button(key="estimate_all").disabled


def test_options_are_widgets_with_their_bounds(screen, folder):
    app = screen(analysis="sinks")
    widget = app.number_input(key="option_sinks_epsilon")
    assert (widget.min, widget.max, widget.value) == (0.0, 1.0, 0.3)
    widget.set_value(0.8).run()
    press(app, "run_one")
    assert '"epsilon": 0.8' in run_folder.open(folder).results()["sinks"].attrs["options"]
    choices = screen(analysis="probing").selectbox(key="option_probing_relation")
    assert choices.options == ["duplicate", "evidence"]


@pytest.mark.parametrize("name", analyses.names())
def test_every_analysis_has_a_form_whose_defaults_change_nothing(name, demo_run, dashboard):
    app = dashboard(demo_run, "analyses", analysis=name)
    assert app.header[0].value == name
    assert not app.error
    labels = {
        element.label.replace("\\", "")
        for kind in ("number_input", "text_input", "checkbox", "selectbox")
        for element in app.get(kind)
    }
    assert set(analyses.options(name)) <= labels
    press(app, "estimate_one")
    assert QUEUE.jobs[-1].about[1][2] == "{}"


def test_quick_ones_run_together_and_their_results_open_on_heads(screen, folder):
    app = press(screen(), "run_quick")
    job = QUEUE.jobs[-1]
    assert job.state == DONE, job.error
    done = set(run_folder.open(folder).results())
    assert {"entropy", "sinks", "head_types"} <= done
    assert job.message.startswith(f"{len(done)} with a result")
    assert app.button(key="run_quick").disabled


def test_a_cancelled_analysis_keeps_what_was_finished_and_nothing_half(screen, folder):
    app = screen(analysis="importance")
    app.button(key="run_one").click().run()
    job = QUEUE.jobs[-1]
    while not any(phase.name.endswith("importance") for phase in job.phases.running):
        assert not job.ended
    app.run()
    app.button(key=f"cancel_{id(job)}").click().run()
    assert QUEUE.wait(TIMEOUT)
    assert job.state == "cancelled"
    app.run()
    output = " ".join(each.value for each in app.markdown)
    assert plain("cancelled. What was finished is kept") in output
    run = run_folder.open(folder)
    assert run.results() == {}
    assert not list(folder.rglob("*.tmp"))
    assert set(analyze_run(run, ["sinks"])) == {"sinks"}


def test_a_bug_in_an_analysis_is_reported_with_its_traceback(screen, monkeypatch):
    def broken(*given, **options):
        raise ZeroDivisionError("<b>by nothing</b>")

    monkeypatch.setattr(analyses.load("sinks"), "run", broken)
    monkeypatch.setattr("headscope.analyses._runtime.inputs.positionals", lambda name: ("capture",))
    app = press(screen(analysis="sinks"), "run_one")
    assert QUEUE.jobs[-1].state == FAILED
    assert any("ZeroDivisionError" in code.value for code in app.code)


@pytest.mark.parametrize("attention", ["cross", "decoder", "encoder"])
def test_a_refusal_on_the_screen_is_that_of_the_analysis(attention, paired_runs, tmp_path):
    shutil.copytree(paired_runs / attention, tmp_path / "run")
    run = run_folder.open(tmp_path / "run")
    for name in ("sinks", "entropy", "importance", "sink_topology", "similarity", "preplan_anchor"):
        told = refusal(name, run.capture)
        refused = isinstance(analyze_run(run, [name], number=2)[name], HeadscopeError)
        # Which side of such a model an analysis reads, it declares for cross-attention alone.
        assert refused or not told, (name, told)
        assert refused == bool(told) or attention != "cross", name
        assert not told or told.endswith("; see sinks")


def test_what_does_not_apply_cannot_be_run(paired_runs, dashboard):
    app = dashboard(paired_runs / "cross", "analyses", run="cross", analysis="importance")
    assert "Does not apply to this run" in app.warning[0].value
    assert not [button for button in app.button if button.key == "run_one"]
    assert row(app, "importance")["status"] == "does not apply"
    assert row(app, "sinks")["status"] == "done"


def test_a_run_of_own_prompts_with_answers_asks_those(tmp_path, dashboard):
    line = {"clean": "When Mary and Peter went to the park , Peter gave a lamp to",
            "corrupted": "When Mary and Peter went to the park , Paul gave a lamp to",
            "answers": "Mary", "wrong": "Peter"}  # fmt: skip
    (tmp_path / "mine.jsonl").write_text(json.dumps(line))
    run = tmp_path / "run"
    capture_run(run, "headscope/bundled", prompts=tmp_path / "mine.jsonl")
    app = dashboard(run, "analyses", analysis="importance")
    assert "own prompts with answers, 1 of mine" in " ".join(each.value for each in app.caption)
    labels = [each.label for each in app.number_input]
    assert not any("prompts of the task" in label for label in labels)
    # One that needs a task of its own draws it.
    app = dashboard(run, "analyses", analysis="head_types")
    assert "prompts of the task induction" in [each.label for each in app.number_input]

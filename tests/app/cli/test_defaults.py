"""What commands do where nothing is named: quick analyses, tasks in the register of the model."""

import inspect
import json

import numpy as np
import pytest

from headscope import analyses
from headscope.app.cli import demo
from headscope.app.pipeline import capture_run, quick
from headscope.kernels.errors import NotApplicable
from headscope.probes import load_model
from headscope.probes.prompts import tasks
from headscope.probes.prompts.tokens import encode
from headscope.probes.storage import run_folder

PYTHON = "headscope/bundled-python"


@pytest.fixture
def run(tmp_path):
    return capture_run(tmp_path / "run", "headscope/bundled", task="story", number=2)


def asks(name: str) -> list[str]:
    """List what ``run`` of an analysis asks for, beside its options."""
    parameters = inspect.signature(inspect.unwrap(analyses.load(name).run)).parameters
    return [
        parameter.name
        for parameter in parameters.values()
        if parameter.kind is not parameter.KEYWORD_ONLY
    ]


def test_without_names_those_run_that_need_the_capture_alone_and_head_types(run, headscope):
    expected = {name for name in analyses.names() if asks(name) == ["capture"]} | {"head_types"}
    assert {"sinks", "entropy"} < expected < set(analyses.names()) - {"importance"}
    assert set(quick()) == expected
    output = headscope("analyze", run.path, "--set", "head_types.draws=1").printed()
    assert set(run.results()) == expected
    (line,) = [line for line in output.splitlines() if line.startswith("left, ")]
    left = line.partition(": ")[2].partition(";")[0].split(", ")
    assert set(left) == set(analyses.names()) - expected
    assert f"headscope analyze {run.path} --all runs them all" in line


def test_what_is_named_runs_alone_and_nothing_is_reported_of_the_others(run, headscope):
    output = headscope("analyze", run.path, "offsets").printed()
    assert set(run.results()) == {"offsets"}
    assert "left" not in output
    assert (
        "--all: runs every analysis" in headscope("analyze", run.path, "offsets", "--all").refusal()
    )


def test_all_runs_what_is_missing(run, headscope, monkeypatch):
    monkeypatch.setattr(analyses, "names", lambda: ["entropy", "offsets", "sinks"])
    headscope("analyze", run.path, "sinks").printed()
    before = run.results()["sinks"]
    assert "left" not in headscope("analyze", run.path, "--all").printed()
    assert set(run.results()) == {"entropy", "offsets", "sinks"}
    assert run.results()["sinks"].identical(before)


def test_ablations_in_bfloat16_state_how_far_they_agree(run, headscope):
    refused = headscope("analyze", run.path, "importance", "--dtype", "float16").refusal()
    assert refused.startswith("error: dtype: no 'float16'; choose one of float32, bfloat16")
    given = ("analyze", run.path, "importance", "sinks", "--number", 2, "--dtype")
    headscope(*given, "bfloat16").printed()
    low = run.results()
    headscope(*given, "float32").printed()
    whole = run.results()
    for name in ("sinks", "importance"):
        assert "effects_dtype" not in whole[name].attrs
    assert "effects_dtype" not in low["sinks"].attrs
    attrs = low["importance"].attrs
    assert attrs["effects_dtype"] == "bfloat16"
    [agreement] = attrs["effects_agreement"]
    assert (agreement["sets"], agreement["prompts"]) == (16, 2)
    assert f"Spearman ρ {agreement['rho']:.3f}" in attrs["note"]
    effects = [each["importance"]["zero_ablation"].values for each in (low, whole)]
    assert 0 < np.abs(effects[0] - effects[1]).max() < 0.1 * np.abs(effects[1]).max()


def test_the_demo_runs_on_any_model_in_its_register(tmp_path, monkeypatch, headscope):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "STORY", ("sinks", "entropy"))
    headscope("demo", "--model", PYTHON, "--number", 2).printed()
    made = run_folder.open("runs/demo-bundled-python")
    assert made.manifest["model"] == PYTHON
    assert (made.manifest["task"], made.manifest["register"]) == ("story", "natural")
    assert set(made.results()) == {"sinks", "entropy"}
    assert (made.path / "report.html").is_file()


def test_a_register_is_that_of_the_capture_and_of_its_analyses(tmp_path, headscope, monkeypatch):
    folder = tmp_path / "run"
    given = ("capture", PYTHON, "--task", "ioi", "--number", 3, "--out", folder)
    output = headscope(*given, "--register", "plain").printed()
    assert "(ioi, plain register" in output
    run, model = run_folder.open(folder), load_model(PYTHON)
    task = tasks.make("ioi", model.tokenizer, 3, register="plain")
    assert run.prompts() == [list(ids) for ids in encode(task, model.tokenizer).ids]
    assert json.loads((folder / "manifest.json").read_text())["register"] == "plain"
    drawn = []

    def keep(model, task):
        drawn.append((task.register, tasks.make("recall", model.tokenizer, 1).register))
        raise NotApplicable("task: seen")

    monkeypatch.setattr(analyses.load("contrast"), "run", keep)
    headscope("analyze", folder, "contrast")
    headscope("analyze", folder, "contrast", "--register", "natural")
    assert drawn == [("plain", "plain"), ("natural", "natural")]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--task", "ioi", "--register", "odd"), "'odd' is unknown; choose plain or natural"),
        (("--prompts", "a.txt", "--register", "plain"), "the wording of a built-in task"),
    ],
)
def test_a_register_that_means_nothing_is_refused(given, said, tmp_path, monkeypatch, headscope):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a text\n")
    refused = headscope("capture", PYTHON, *given, "--out", tmp_path / "run").refusal()
    assert refused.startswith("error: register: ")
    assert said in refused

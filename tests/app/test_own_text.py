"""Any text, from the command line to the dashboard, on the bundled model of real text."""

import json
from pathlib import Path

import pytest

from headscope.app.pipeline import analyze_run
from headscope.probes.storage import run_folder

OWN = "for naïve in ('😀', \"世界\"):\n    print(naïve)"


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory, run_command) -> Path:
    """A run of real library text and of one text of the user's own."""
    folder = tmp_path_factory.mktemp("own")
    prompts = folder / "texts.jsonl"
    run_command("texts", "--out", prompts, "--number", 2, "--tokens", 200)
    with prompts.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"text": OWN}) + "\n")
    given = ("--prompts", prompts, "--out", folder / "run")
    run_command("capture", "headscope/bundled-python", *given)
    return folder / "run"


def test_texts_of_any_kind_are_captured_whole(captured):
    run = run_folder.open(captured)
    assert run.manifest["model"] == "headscope/bundled-python"
    lengths = run.capture["length"].values.tolist()
    assert len(lengths) == 3
    assert all(140 < length <= 200 for length in lengths[:2])


def test_analyses_run_on_a_model_whose_words_are_several_tokens(captured):
    run, names = run_folder.open(captured), ("sinks", "head_types", "retrieval")
    outcome = analyze_run(run, names, number=4, options={"head_types": {"draws": 1}})
    assert outcome["sinks"]["sink"].shape == (6, 6)
    assert outcome["head_types"]["induction"].argmax(...)["layer"] == 5
    assert outcome["retrieval"].attrs["verdict"] == "too_few"


def test_the_dashboard_takes_any_text(captured, dashboard):
    analyze_run(run_folder.open(captured), ("sinks",))
    screen = dashboard(captured)
    screen.text_area(key="text").set_value(OWN).run()
    assert not screen.exception
    assert not screen.error
    assert repr([OWN]) in screen.main.code[1].value


def test_texts_refuse_a_folder_that_is_not_there(tmp_path, headscope):
    line = headscope("texts", "--out", tmp_path / "no" / "texts.jsonl").refusal()
    assert line.startswith("error: --out: ")

"""Any text, from the command line to the dashboard, on the bundled model of real text."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headscope.app.cli import app
from headscope.app.pipeline import analyze_run
from headscope.kernels.errors import HeadscopeError
from headscope.probes.storage import run_folder

OWN = "for naïve in ('😀', \"世界\"):\n    print(naïve)"


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of real library text and of one text of the user's own."""
    folder = tmp_path_factory.mktemp("own")
    prompts = folder / "texts.jsonl"
    result = CliRunner().invoke(
        app, ["texts", "--out", str(prompts), "--number", "2", "--tokens", "200"]
    )
    assert result.exit_code == 0, result.output
    with prompts.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"text": OWN}) + "\n")
    run = folder / "run"
    result = CliRunner().invoke(
        app, ["capture", "headscope/bundled-python", "--prompts", str(prompts), "--out", str(run)]
    )
    assert result.exit_code == 0, result.output
    return run


def test_texts_of_any_kind_are_captured_whole(captured: Path) -> None:
    run = run_folder.open(captured)
    assert run.manifest["model"] == "headscope/bundled-python"
    lengths = run.capture["length"].values.tolist()
    assert len(lengths) == 3
    assert all(140 < length <= 200 for length in lengths[:2])


def test_analyses_run_or_say_which_words_they_lack(captured: Path) -> None:
    options = {"head_types": {"draws": 1}}
    outcome = analyze_run(
        run_folder.open(captured), ("sinks", "head_types", "retrieval"), number=4, options=options
    )
    assert outcome["sinks"]["sink"].shape == (6, 6)
    assert outcome["head_types"]["induction"].argmax(...)["layer"] == 5
    assert isinstance(outcome["retrieval"], HeadscopeError)
    assert "one token" in str(outcome["retrieval"])


def test_the_dashboard_takes_any_text(captured: Path, dashboard) -> None:
    analyze_run(run_folder.open(captured), ("sinks",))
    screen = dashboard(captured)
    screen.text_area(key="text").set_value(OWN).run()
    assert not screen.exception
    assert not screen.error
    assert repr([OWN]) in screen.main.code[1].value


def test_texts_refuse_a_folder_that_is_not_there(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["texts", "--out", str(tmp_path / "no" / "texts.jsonl")])
    assert isinstance(result.exception, HeadscopeError)
    assert str(result.exception).startswith("--out: ")

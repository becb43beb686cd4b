"""A run of several analyses goes on where one fails, and stops at what the user has to mend."""

import shutil
from pathlib import Path

import pytest

from headscope import analyses
from headscope.app.pipeline import capture_run
from headscope.kernels.errors import NotApplicable, ResourceLimit
from headscope.probes import bundled
from headscope.probes.storage import run_folder


@pytest.fixture
def run(tmp_path: Path) -> run_folder.Run:
    return capture_run(tmp_path / "run", "headscope/bundled", task="story", number=2)


def told(lines: list[str]) -> list[str]:
    """Leave the lines of progress and of costs out."""
    costs = ("runs the model", "reads the capture", "was not counted")
    return [line for line in lines if ": " in line and not any(part in line for part in costs)]


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch):
    """Let an analysis raise an error until `monkeypatch.undo`."""

    def patch(name: str, error: Exception) -> None:
        def broken(capture):
            raise error

        monkeypatch.setattr(analyses.load(name), "run", broken)

    return patch


def test_a_bug_leaves_its_traceback_and_the_others_run(run, headscope, fail, monkeypatch):
    fail("span", ZeroDivisionError("by nothing\nat all"))
    code, _, lines = headscope("analyze", run.path, "sinks", "span", "entropy")
    trace = run.error_file("span")
    output = f"failed: span: ZeroDivisionError: by nothing; please report it with {trace}"
    assert (code, told(lines)) == (1, [output])
    assert "in broken" in trace.read_text()
    assert "at all" in trace.read_text()
    results = run.results()
    assert results["span"].attrs["skipped"] == "ZeroDivisionError: by nothing"
    assert {"sink", "entropy"} <= {*results["sinks"], *results["entropy"]}
    headscope("report", run.path)
    assert "Not run: ZeroDivisionError: by nothing" in (run.path / "report.html").read_text()
    monkeypatch.undo()
    assert headscope("analyze", run.path, "span").code == 0
    assert not trace.exists()
    assert "skipped" not in run.results()["span"].attrs


def test_what_does_not_suit_the_model_is_passed_over(run, headscope, fail):
    fail("span", NotApplicable("capture: span needs more; give more"))
    code, _, lines = headscope("analyze", run.path, "span", "entropy")
    assert (code, told(lines)) == (2, ["not run: span: capture: span needs more; give more"])
    assert not run.error_file("span").exists()
    assert "entropy" in run.results()["entropy"]


def test_what_has_to_be_mended_first_stops_the_run(run, headscope, fail):
    fail("span", ResourceLimit("memory: 2 TB; give shorter prompts"))
    code, _, lines = headscope("analyze", run.path, "sinks", "span", "entropy")
    assert (code, told(lines)) == (2, ["error: memory: 2 TB; give shorter prompts"])
    assert set(run.results()) == {"sinks"}, "what was finished before is kept"


@pytest.mark.parametrize("checkpoint", ["", "@step400"])
def test_a_run_finds_its_model_from_anywhere_and_accepts_its_new_path(
    checkpoint, tmp_path, monkeypatch, headscope
):
    shutil.copytree(bundled.folder("headscope/induction"), tmp_path / "mine")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run = capture_run(Path("run"), f"mine{checkpoint}", task="induction", number=2)
    monkeypatch.chdir("elsewhere")
    headscope("analyze", f"../{run.path}", "sinks").printed()
    (tmp_path / "mine").rename(tmp_path / "moved")
    assert headscope("analyze", f"../{run.path}", "sinks").code == 2
    headscope("analyze", f"../{run.path}", "sinks", "--model", f"../moved{checkpoint}").printed()

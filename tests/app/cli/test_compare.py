"""headscope compare: two runs held against each other from the command line."""

import json
from pathlib import Path

import pytest

from headscope.app.pipeline import analyze_run, capture_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of one model on other prompts, both with sinks."""
    place = tmp_path_factory.mktemp("compared")
    for seed in (1, 2):
        run = capture_run(place / str(seed), "headscope/bundled", task="story", number=4, seed=seed)
        analyze_run(run, ("sinks",))
    return place / "1", place / "2"


def test_a_run_does_not_differ_from_itself(runs, headscope, tmp_path):
    file = tmp_path / "differences.json"
    given = ("--score", "capture.entropy", "--out", file)
    out = headscope("compare", runs[0], runs[0], *given).printed()
    assert "0 of 32 intervals leave out 0 (paired by prompt)" in out
    [score] = json.loads(file.read_text())["scores"]
    assert score["agreement"] == pytest.approx(1.0)
    assert {head["difference"] for head in score["heads"]} == {0.0}


def test_runs_of_other_prompts_are_compared_by_what_they_share(runs, headscope):
    out = headscope("compare", *runs).printed()
    assert "sinks.sink" in out
    assert "unpaired, from the intervals of both means" in out


def test_a_task_ablates_every_head_of_both_on_the_same_prompts(runs, headscope, tmp_path):
    file = tmp_path / "differences.json"
    given = ("--task", "ioi", "--number", 2, "--top", 3, "--out", file)
    assert "paired by prompt" in headscope("compare", *runs, *given).printed()
    [score] = json.loads(file.read_text())["scores"]
    assert score["units"] == "logits"
    # The same model on the same prompts: every head agrees, and so do the three best.
    assert len(score["top"]["shared"]) == 3
    assert max(abs(head["difference"]) for head in score["heads"]) < 1e-6


def test_what_is_not_there_is_refused_in_one_line(runs, headscope):
    for words, line in (
        ((*runs, "--score", "importance.zero_ablation"), "error: --score: "),
        ((*runs, "--score", "sinks.sink", "--across", "colour"), "error: across: 'colour' is not"),
        ((runs[0], runs[1].parent / "3"), "error: "),
    ):
        assert headscope("compare", *words).refusal().startswith(line)

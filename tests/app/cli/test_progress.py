"""What a command says of its progress: bars on a terminal, one line every ten seconds without."""

import io
import re
import sys
import time
from contextlib import suppress

import pytest
from rich.console import Console

from headscope import analyses
from headscope.app.cli import progress
from headscope.app.cli.progress import Phases
from headscope.app.pipeline import capture_run
from headscope.kernels.errors import InvalidInput


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_phase_states_its_share_the_time_and_what_is_left(clock):
    phases = Phases()
    clock[0] = 112
    assert phases.describe() == "starting: 0:12 elapsed"
    phases.count("capture", 0, 8)
    clock[0] = 142
    assert phases.describe() == "capture: 0:30 elapsed"
    phases.count("capture", 2, 8)
    clock[0] = 147
    assert phases.describe() == "capture: 25% done, 0:35 elapsed, about 1:25 left"


def test_the_rate_is_that_of_the_steps_and_not_of_what_came_before_them(clock):
    phases = Phases()
    phases.count("1/1 retrieval", 0, 1)
    clock[0] += 60
    phases.count("1/1 retrieval", 1, 4)
    assert phases.describe() == "1/1 retrieval: 25% done, 1:00 elapsed"
    clock[0] += 10
    phases.count("1/1 retrieval", 2, 4)
    assert phases.describe() == "1/1 retrieval: 50% done, 1:10 elapsed, about 0:20 left"


def test_what_was_stated_states_what_is_left_until_there_is_evidence(clock):
    phases = Phases({"importance": 80.0})
    phases.count("1/2 importance", 0, 100)
    assert phases.describe() == "1/2 importance: 0:00 elapsed, about 1:20 left"
    clock[0] += 20
    phases.count("1/2 importance", 1, 100)  # 33 minutes at the rate so far
    assert phases.describe() == "1/2 importance: 1% done, 0:20 elapsed, about 1:19 left"
    clock[0] += 20
    phases.count("1/2 importance", 10, 100)
    assert phases.describe() == "1/2 importance: 10% done, 0:40 elapsed, about 6:00 left"


def test_a_share_in_a_blink_is_no_evidence(clock):
    phases = Phases()
    phases.count("importance", 0, 4)
    clock[0] += 1
    phases.count("importance", 2, 4)
    assert phases.describe() == "importance: 50% done, 0:01 elapsed"


def test_work_of_unknown_size_states_its_time_alone(clock):
    phases = Phases()
    phases.count("mine", 0, 0)
    phases.count("mine", 300, 0)
    clock[0] += 61
    assert phases.describe() == "mine: 1:01 elapsed"
    phases.count("mine", 300, 300)
    assert phases.running[0].complete


def test_what_is_complete_and_still_runs_is_not_called_done(clock):
    phases = Phases()
    phases.count("importance", 4, 4)
    clock[0] += 61
    assert phases.describe() == "importance: 99% done, 1:01 elapsed"


def test_phases_inside_another_have_their_own_time_and_end_with_it(clock):
    phases = Phases()
    phases.count("cells", 0, 2)
    phases.count("this cell", 1, 4)
    clock[0] += 10
    phases.count("this cell", 2, 4)
    both = "cells: 0:10 elapsed; this cell: 50% done, 0:10 elapsed, about 0:20 left"
    assert phases.describe() == both
    clock[0] += 10
    (ended,) = phases.count("cells", 1, 2)
    assert ended.name == "this cell"
    assert phases.describe() == "cells: 50% done, 0:20 elapsed, about 0:20 left"
    phases.count("this cell", 1, 4)
    assert phases.describe().endswith("this cell: 25% done, 0:00 elapsed")


def test_a_phase_that_is_complete_ends_inside_another_and_before_the_next(clock):
    phases = Phases()
    phases.count("capture", 8, 8)
    phases.count("1/2 head_types", 0, 1)
    phases.count("1/2 head_types: capture", 8, 8)
    assert phases.describe() == "1/2 head_types: 0:00 elapsed"


def test_lines_come_at_their_interval_and_nothing_between(monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL", 0.2)
    console = Console(file=io.StringIO(), width=40)
    with progress.bar(console) as report:
        for done in range(50):
            report("capture", done, 100)
            time.sleep(0.01)
    lines = console.file.getvalue().splitlines()
    assert 1 <= len(lines) <= 3
    output = r"capture: \d+% done, 0:0\d elapsed"
    assert all(re.fullmatch(output, line) for line in lines), lines
    time.sleep(0.3)
    assert console.file.getvalue().splitlines() == lines, "nothing after the end"


def test_a_bar_is_full_when_its_phase_has_ended_and_not_before():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with progress.bar(console) as report:
        report("importance", 4, 4)
        time.sleep(0.3)
        assert "99%" in console.file.getvalue()
        assert "100%" not in console.file.getvalue()
    assert "100%" in console.file.getvalue()


def test_a_bar_begins_again_with_its_phase():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with progress.bar(console) as report:
        report("cells", 0, 2)
        report("this cell", 3, 3)
        report("this cell", 1, 4)
        time.sleep(0.3)
        last = console.file.getvalue().rpartition("this cell")[2]
        assert "25%" in last


def test_a_terminal_stays_clean_where_input_is_refused_at_once():
    console = Console(file=io.StringIO(), force_terminal=True)
    with suppress(InvalidInput), progress.bar(console):
        raise InvalidInput("task: none")
    assert console.file.getvalue() == ""


def test_an_analysis_that_counts_nothing_is_named_while_it_runs(tmp_path, headscope, monkeypatch):
    run = capture_run(tmp_path / "run", "headscope/bundled", task="story", number=2)
    true = analyses.load("entropy").run

    def slow(capture):
        time.sleep(1)
        return true(capture)

    monkeypatch.setattr(progress, "INTERVAL", 0.4)
    monkeypatch.setattr(analyses.load("entropy"), "run", slow)
    code, _, lines = headscope("analyze", run.path, "sinks", "entropy")
    assert code == 0
    assert any(line.startswith("2/2 entropy: 0:0") for line in lines), lines


def test_short_work_without_a_terminal_is_silent(tmp_path, headscope):
    assert not sys.stderr.isatty()
    given = ("--task", "story", "--number", 2, "--out", tmp_path / "run")
    ended = headscope("capture", "headscope/bundled", *given)
    assert (ended.code, ended.err) == (0, [])
    assert "captured 2 prompts (story, plain register) into" in ended.out

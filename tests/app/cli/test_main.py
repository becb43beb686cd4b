"""The command line lists what the registries hold and explains itself."""

import pytest
from typer.testing import CliRunner

from headscope import analyses
from headscope.analyses._runtime import taxonomy
from headscope.app.cli import app
from headscope.kernels import statistics
from headscope.probes.bundled import BUNDLED

COMMANDS = {
    command.name or command.callback.__name__: command.callback
    for command in app.registered_commands
    if command.callback
}


def said(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_help_comes_from_the_docstring(command):
    first = (COMMANDS[command].__doc__ or "").splitlines()[0]
    assert first
    assert first.rstrip(".") in " ".join(said(command, "--help").split())


def test_every_analysis_is_listed_and_shown_with_its_options():
    listed = said("analyses")
    for name in analyses.names():
        assert analyses.summary(name) in listed
        shown = said("analyses", name)
        assert all(f"{name}.{option}=" in shown for option in analyses.options(name))


@pytest.mark.requirement("A13")
def test_every_head_type_is_listed_with_stage_evidence_and_method():
    listed = said("analyses")
    for kind, term in taxonomy.TERMS.items():
        evidence, way = taxonomy.METHODS[term.method]
        placed = f"{term.stage} (placed by {term.placed_by})"
        assert f"  {kind}: {placed}; {evidence}; {way}\n" in listed
    for analysis, term in taxonomy.NAMED_BY.items():
        assert f"  as `{analysis}` names them: {term.stage} (placed by headscope); " in listed
        assert analysis in analyses.names()


def test_every_statistic_is_listed_with_its_formula():
    listed = said("statistics")
    for name in statistics.names():
        assert statistics.load(name).formula in listed


def test_the_bundled_models_are_listed():
    for name in BUNDLED:
        assert f"{name} " in said("models")


def test_a_dry_run_states_what_it_would_need_and_writes_nothing(tmp_path):
    told = said(
        "capture", "headscope/bundled", "--task", "story", "--number", "2",
        "--out", str(tmp_path / "run"), "--dry-run",
    )  # fmt: skip
    assert told.startswith("2 prompts of up to ")
    assert "peak beyond the model" in told
    assert not list(tmp_path.iterdir())


def test_ctrl_c_says_that_what_was_finished_is_kept(headscope, demo_run, monkeypatch):
    def interrupted(run):
        raise KeyboardInterrupt

    monkeypatch.setattr("headscope.app.cli.report.print_report", interrupted)
    ended = headscope("report", demo_run)
    assert ended.code == 130
    assert ended.err == ["cancelled; what was finished is kept, run the command again to go on"]

"""README and the pages of docs/ say what is so: commands, files, registries, targets of make."""

import re
import shlex
from pathlib import Path

import pytest
import reference
import tables
import typer

from headscope import analyses
from headscope.analyses._runtime import taxonomy
from headscope.app.cli.main import app
from headscope.app.pipeline import parse_settings
from headscope.kernels import statistics
from headscope.probes.prompts import tasks

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands() -> list[str]:
    """Every command of headscope in a block of shell."""
    result = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
            for line in re.split(r"\n|&&", re.sub(r" #.*", "", block)):
                if line.strip().startswith("headscope "):
                    result.append(line.strip())
    return sorted(set(result))


@pytest.mark.parametrize("line", commands())
def test_commands_of_the_pages_parse(line):
    words = shlex.split(line)[1:]
    command = typer.main.get_command(app)
    while getattr(command, "commands", None) and words:
        command = command.commands[words.pop(0)]
    given = command.make_context(line, words).params
    for name in (*(given.get("names") or ()), *filter(None, [given.get("analysis")])):
        assert name in analyses.names()
    for name, options in parse_settings(given.get("settings") or []).items():
        assert set(options) <= set(analyses.options(name))
    if given.get("task"):
        assert given["task"] in tasks.names()


def test_the_pages_show_commands():
    assert len(commands()) > 20


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert (ROOT / target).exists(), target
    assert len(README.encode()) < 7000


def test_the_readme_names_what_ci_calls_and_the_markers_of_slow_checks():
    called = re.findall(r"^ *make (\S+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert called[0] == "test"
    develop = README.partition("## Develop")[2]
    named = {
        word for line in re.findall(r"^make .*", develop, re.MULTILINE) for word in line.split()
    }
    assert {*called} <= named
    (options,) = re.findall(r"addopts = .*", (ROOT / "pyproject.toml").read_text())
    for marker in set(re.findall(r"not (\w+)", options)) - {"interpreter"}:  # run by test_triton
        assert re.search(rf"\b{marker}\b", develop), marker


def test_every_statistic_task_and_option_is_on_its_page():
    page = tables.statistics_page()
    for name in statistics.names():
        assert f"### {name}\n" in page
        assert statistics.load(name).formula in page
    page = tables.head_types_page()
    for kind, term in taxonomy.TERMS.items():
        assert f"| {kind} | {term.stage} |" in page
    page = reference.tasks_page()
    for name in tasks.names():
        assert f"## {name}\n" in page
    for family, members in analyses.families().items():
        page = reference.family_page(family)
        for name in members:
            assert f"## {name}\n" in page
            for option in analyses.options(name):
                assert f"| `{option}` | " in page
            assert "``" not in page.replace("```", ""), name


def test_every_edit_and_command_is_on_its_page():
    page = reference.edits_page()
    for name in ("Ablate", "Gate", "Offset", "Replace", "KnockOut", "Window", "FixPattern"):
        assert f"::: headscope.probes.interventions.{name}\n" in page
    page = reference.commands_page()
    for option in ("--dry-run", "--all", "--bos / --no-bos", "--set NAME.OPTION=VALUE"):
        assert option in page


def test_no_page_names_a_place_on_some_machine():
    made = (reference.family_page(family) for family in analyses.families())
    stored = (path.read_text() for path in (ROOT / "notebooks").glob("*.ipynb"))
    for text in (*made, *stored, *(page.read_text() for page in PAGES)):
        assert not re.search(r"/(home|root|tmp|work)/\w", text)


def test_benchmarks_are_read_from_their_results():
    page = tables.benchmarks_page()
    assert page.count("## ") >= len(list((ROOT / "benchmarks" / "results").glob("*.json")))

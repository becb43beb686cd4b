"""The command that makes a timeline, its page, and the screen that shows it."""

from pathlib import Path

import numpy as np
import pytest
from browser_views import browser_views, links, query_of, unpacked
from charts import figures
from refusals import check_refusal
from typer.testing import CliRunner

from headscope.analyses.series import timeline_folder
from headscope.app import cli
from headscope.app.dashboard.launch import command, served
from headscope.app.pipeline import capture_run

STEPS = ("step0", "step400", "step1000")
SOURCES = [f"headscope/induction@{step}" for step in STEPS]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A timeline of three shipped checkpoints, and what the command printed."""
    folder = tmp_path_factory.mktemp("runs") / "emergence"
    done = CliRunner().invoke(
        cli.app,
        ["timeline", *SOURCES, "--analysis", "head_types", "--set", "draws=1", "--number", "4",
         "--out", str(folder)],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder, done.stdout


def test_the_command_states_when_heads_emerge_and_writes_a_page(made):
    folder, output = made
    assert output.startswith("3 of 3 checkpoints, steps 0 to 1000.")
    (line,) = [line for line in output.splitlines() if line.startswith("induction: ")]
    assert line.startswith("induction: L1H")
    assert " and 1000)" in line
    page = (folder / "timeline.html").read_text()
    assert "head_types over the training of headscope/induction" in page
    assert page.count('class="plot"') == 6
    (line,) = [line for line in output.splitlines() if line.startswith("order: ")]
    # Three checkpoints cannot tell which of them is first.
    assert "the checkpoints lie too far apart to tell" in line
    assert "Order of emergence" in page
    assert line.removeprefix("order: ").split(";")[0].split(" (")[0] in page
    assert "surely between" in page
    assert "https://" not in page.split("<script>")[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("headscope/bundled@*",), "error: model: headscope/bundled has no checkpoints"),
        ((SOURCES[0], "headscope/bundled"), "error: steps: headscope/bundled names no training"),
        ((*SOURCES[:2], "--steps", "1,x"), "error: --steps: '1,x' is no list of numbers"),
        ((*SOURCES[:2], "--set", "draw=1"), "error: draw: head_types has no such option"),
    ],
)
def test_bad_requests_are_one_line_and_leave_nothing(words, said, tmp_path, headscope):
    out = tmp_path / "out"
    rest = ("--analysis", "head_types", "--out", str(out))
    assert headscope("timeline", *words, *rest).refusal().startswith(said)
    assert not out.exists()


def test_a_screen_shows_lines_and_the_order(made, dashboard):
    app = dashboard(made[0], score="induction")
    assert app.title[0].value == "Timelines"
    assert app.selectbox(key="score").value == "induction"
    order = app.main.table[0].value
    assert set(order["head"]) == {"L1H1", "L1H2", "L1H3"}
    lower, upper = order["surely between steps"].iloc[0].split(" and ")
    assert 0 <= float(lower) <= float(order["at step"].iloc[0]) <= float(upper) <= 1000
    first = app.main.table[1].value
    assert set(first["score"]) == {"previous_token", "induction", "induction_accuracy", "bos"}
    assert first["at step"].astype(float).is_monotonic_increasing
    assert first["distinct from the one before"].iloc[0] == "–"
    app.selectbox(key="score").set_value("induction_accuracy").run()
    assert not app.exception
    # The order of the scores alone: this is no score of heads.
    (only,) = app.main.table
    assert only.value.equals(first)


def test_the_picked_head_stands_out_in_lines_and_grid_and_opens_where_it_was_captured(
    made, dashboard
):
    whole = timeline_folder.load(made[0])
    app = dashboard(made[0], score="induction")
    order = app.main.table[0].value
    assert app.selectbox(key="line").value == order["head"].iloc[0], "the first that emerges"
    app = dashboard(made[0], score="induction", line="L0H1", checkpoint="step400")
    lines = figures(app)["lines"]["data"]
    widths = {line["name"]: line["line"]["width"] for line in lines if line.get("hovertext")}
    assert [name for name, width in widths.items() if width == 4] == ["L0H1"]
    view = browser_views(app)["timeline_grid"]
    assert view["picked"] == [0, 1]
    values = unpacked(view["values"], "<f8").reshape(2, 4)
    np.testing.assert_allclose(values, whole["induction"].sel(checkpoint="step400"))
    assert "headscope capture headscope/induction@step400" in app.code[0].value

    run = made[0].parent / "late"
    capture_run(run, "headscope/induction@step1000", task="induction", number=2)
    app = dashboard(run, "timelines", line="L1H2")
    [link] = links(app)
    assert link.label == "Open L1H2 in Heads: late, step1000"
    assert {"run": ["late"], "layer": ["1"], "head": ["2"]}.items() <= query_of(link).items()


def test_a_timeline_beside_a_run_is_found(demo_run, made, dashboard):
    app = dashboard(demo_run, "timelines")
    assert "There is no timeline beside this run" in app.info[0].value
    (demo_run.parent / "emergence").symlink_to(made[0])
    app.run()
    assert not app.exception
    assert app.selectbox(key="timeline").value == "emergence"
    (demo_run.parent / "emergence").unlink()


def test_the_dashboard_opens_on_either(made, demo_run):
    assert served(made[0]) == made[0]
    assert served(demo_run) == demo_run
    assert command(served(made[0]))[-1] == str(made[0])
    check_refusal("run", served, made[0] / "checkpoints")

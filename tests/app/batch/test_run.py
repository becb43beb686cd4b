"""Batches: the table says what the analyses say, kills leave no mark, failures stay in place."""

import errno
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow.dataset
import pytest
from refusals import check_refusal, refusal
from safetensors.torch import load_file, save_file

from headscope import analyses, probes
from headscope.analyses._runtime import runner
from headscope.app.batch import worker
from headscope.app.batch.job import Job
from headscope.app.batch.run import run
from headscope.app.batch.state import BatchState
from headscope.kernels.errors import HeadscopeError
from headscope.probes.capturing.memory_estimate import format_bytes
from headscope.probes.prompts import tasks


def table(folder: Path):
    return pyarrow.dataset.dataset(folder / "heads", partitioning="hive").to_table().to_pandas()


def test_the_table_holds_what_the_analyses_return(two_by_two, tmp_path, bundled, monkeypatch):
    captures = []
    inner = probes.capture

    def record(model, prompts, **arguments):
        captures.append((model.name, prompts.name, arguments["stats"]))
        return inner(model, prompts, **arguments)

    monkeypatch.setattr(probes, "capture", record)
    steps: list[tuple[str, int, int]] = []
    done = run(two_by_two, tmp_path / "out", progress=lambda *step: steps.append(step))
    assert [cell["state"] for cell in done.cells] == ["done"] * 8
    assert captures == [
        (model, task, ("received", "entropy", "first_mass"))
        for model in ("headscope/bundled", "small")
        for task in ("induction", "ioi")
    ], "the analyses of one model, task and seed share a capture"
    assert [step for step in steps if step[0] == "cells"] == [("cells", n, 8) for n in range(9)]
    result = table(tmp_path / "out")
    assert len(result) == sum(cell["rows"] for cell in done.cells)
    key = ["model", "task", "analysis", "seed", "layer", "head", "variable", "entry"]
    assert not result.duplicated(key).any()
    task = tasks.make("ioi", bundled.tokenizer, n=3)
    expected = runner.execute("sinks", bundled, task, options={"least_queries": 1})
    rows = result[(result["model"] == "headscope/bundled") & (result["task"] == "ioi")]
    rows = rows[(rows["analysis"] == "sinks") & (rows["variable"] == "sink")]
    assert len(rows) == bundled.layers * bundled.heads
    for _, row in rows.iterrows():
        place = {"layer": row["layer"], "head": row["head"]}
        assert row["name"] == f"L{row['layer']}H{row['head']}"
        for column, end in (("value", ""), ("lower", "_lower"), ("upper", "_upper")):
            assert row[column] == float(expected[f"sink{end}"].sel(place))
    cell = rows.iloc[0]
    assert cell["units"] == expected["sink"].attrs["units"]
    own = expected["sink"].attrs.get("convention", expected.attrs["convention"])
    assert cell["convention"] == own
    assert (cell["n"], cell["revision"]) == (3, bundled.revision)
    assert cell["prompts_sha256"] == expected.attrs["prompts_sha256"]
    assert json.loads(cell["options"])["least_queries"] == 1
    assert cell["run"] in {each["cell"] for each in done.cells}


def test_the_index_leads_to_every_report(two_by_two, tmp_path):
    out = tmp_path / "out"
    run(two_by_two, out)
    links: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag, attrs):
            links.extend(value for name, value in attrs if name in ("href", "src"))

    Links().feed((out / "index.html").read_text())
    reports = {out / unquote(link.partition("#")[0]) for link in links if "report" in link}
    assert reports == set(out.glob("reports/*/*/*/report.html"))
    assert len(reports) == 4
    anchors = {link.partition("#")[2] for link in links if "report" in link}
    assert anchors == {"", "sinks", "entropy"}
    page = next(iter(reports))
    links.clear()
    Links().feed(page.read_text())
    library = next(link for link in links if link.endswith(".js"))
    assert (page.parent / library).stat().st_size > 1e6
    assert len(page.read_text()) < 500_000, "plotly.js is there once, beside the reports"
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["not_reproducible"] == ["log.jsonl"]
    assert {cell["state"] for cell in manifest["cells"]} == {"done"}
    assert set(manifest["versions"]) >= {"python", "torch", "headscope"}


def count(folder: Path) -> int:
    return sum(not file.name.startswith(".") for file in folder.rglob("*") if file.is_file())


def kill(job: Job, out: Path, files: int, times: int) -> None:
    """Start a batch again and again, and kill it when some more of its files are there."""
    draw = random.Random(0)
    # A fork shares the model that is loaded, and so is killed in the middle of its work.
    context = multiprocessing.get_context("fork")
    for number in range(times):
        process = context.Process(target=run, args=(job, out))
        process.start()
        while process.is_alive() and count(out) <= number * files // (times + 1):
            time.sleep(0.002)
        time.sleep(draw.random() * 0.005)
        assert process.is_alive(), "it is killed at work"
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()


@pytest.mark.long
def test_ten_kills_leave_no_mark(job, tmp_path, digests):
    submitted = job(
        "models: [headscope/bundled]\ntasks: [ioi]\nnumber: 2\n"
        "analyses: [sinks, entropy]\nseeds: [0, 1, 2, 3]\n"
    )
    run(submitted, tmp_path / "whole")
    expected = digests(tmp_path / "whole")
    out = tmp_path / "killed"
    kill(submitted, out, len(expected), 10)
    assert run(submitted, out).kept == 8, "the last kills came while reports were written"
    assert digests(out) == expected
    assert run(submitted, out).kept == 8
    assert digests(out) == expected


BROKEN = """\
models: [headscope/bundled, {{model: '{empty}', name: empty}}]
tasks: [ioi]
number: 2
analyses: [distractors, entropy, span, rollout]
"""


def test_a_cell_that_fails_is_recorded_and_the_rest_goes_on(job, tmp_path, small, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_bytes((small / "config.json").read_bytes())

    def broken(*_, **__):
        raise ZeroDivisionError("by nothing\nat all")

    monkeypatch.setattr(analyses.load("span"), "run", broken)
    # What `positionals` and `options` read of it.
    broken.__signature__ = __import__("inspect").Signature()
    out = tmp_path / "out"
    submitted = job(BROKEN.format(empty=empty))
    states = {(cell["model"], cell["analysis"]): cell for cell in run(submitted, out).cells}
    unsuited = "task: ioi does not come with any number of facts; use recall"
    assert states["headscope/bundled", "distractors"]["reason"] == unsuited
    assert states["headscope/bundled", "span"]["reason"] == "ZeroDivisionError: by nothing"
    for name in ("entropy", "rollout"):
        assert states["headscope/bundled", name]["state"] == "done"
    reasons = {states["empty", name]["reason"] for name in submitted.analyses}
    assert len(reasons) == 1
    assert next(iter(reasons)).startswith("model: 'empty' does not load: "), "called by its name"
    index = (out / "index.html").read_text()
    for words in (unsuited, "ZeroDivisionError: by nothing", "6 cells failed"):
        assert words in index
    report = next(out.glob("reports/*bundled/*/*/report.html")).read_text()
    assert "Not run: ZeroDivisionError: by nothing" in report
    assert "by nothing\\nat all" in (out / "log.jsonl").read_text(), "the log says where"
    assert set(table(out)["analysis"]) == {"entropy"}, "rollout has no number a head"
    # What failed is left alone, unless it is asked for.
    monkeypatch.undo()
    assert len(run(submitted, out).failed) == 6
    again = run(submitted, out, retry=True)
    assert len(again.failed) == 5
    assert again.kept == 2
    report = next(out.glob("reports/*bundled/*/*/report.html")).read_text()
    assert "ZeroDivisionError" not in report


def test_a_dry_run_states_cells_and_memory_and_writes_nothing(two_by_two, headscope, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    given = ("--out", tmp_path / "out", "--dry-run")
    code, output, errors = headscope("batch", tmp_path / "job.yaml", *given)
    assert (code, errors) == (0, [])
    assert sorted(tmp_path.rglob("*")) == before
    lines = output.splitlines()
    assert lines[0].startswith("headscope/bundled · induction · seed 0: 2 cells, 3 prompts, ")
    assert lines[1].startswith("    sinks: runs the model once over ")
    assert re.fullmatch(r"    entropy: reads the capture, [\d.]+ MB captured", lines[2])
    assert re.search(r"8 cells, about \d+ s of passes; 4 captures of ", output)
    group = two_by_two.groups[0]
    model = worker.load(group.model, 1)
    given = group.task.draw(model, 0)
    planned = probes.plan(model, given, stats=("received", "entropy"), batch_tokens=8192)
    assert f"{format_bytes(planned.memory)} beyond the model at the peak" in lines[0]
    assert lines[-1].endswith(f"the results would go to {tmp_path / 'out'}")
    assert f"{3 * len(model.encode(given.prompts[0].clean))} tokens" in lines[0]


def test_a_folder_that_does_not_take_the_job_is_one_line(two_by_two, headscope, tmp_path):
    file = tmp_path / "job.yaml"
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    for out, words in ((file / "out", "is a file"), (tmp_path / "taken", "holds other files")):
        for more in ((), ("--overwrite",), ("--dry-run",)):
            line = headscope("batch", file, "--out", out, *more).refusal()
            assert line.startswith("error: out: ")
            assert words in line
    assert [one.name for one in (tmp_path / "taken").iterdir()] == ["thesis.txt"]
    line = headscope("batch", tmp_path / "none.yaml").refusal()
    assert "none.yaml cannot be read" in line


def test_a_full_disk_is_one_line_and_the_job_goes_on_later(
    two_by_two, headscope, tmp_path, monkeypatch, digests
):
    out, inner, left = tmp_path / "out", os.fsync, [9]

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        inner(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        code, _, errors = headscope("batch", tmp_path / "job.yaml", "--out", out)
    assert code == 2
    assert [line for line in errors if line.startswith("error: ")] == errors[-1:]
    assert "No space left on device" in errors[-1]
    assert not [file for file in out.rglob("*") if file.name.endswith(".tmp")]
    output = headscope("batch", tmp_path / "job.yaml", "--out", out).printed()
    assert "8 of 8 cells have a result, 2 of them known before" in output
    run(two_by_two, tmp_path / "whole")
    assert digests(out) == digests(tmp_path / "whole")


def test_a_folder_belongs_to_one_job(job, tmp_path, digests):
    text = "models: [headscope/bundled]\ntasks: [ioi]\nnumber: 2\nanalyses: [sinks]\n"
    out = tmp_path / "out"
    run(job(text), out)
    before = digests(out)
    other = job(text + "seeds: [3]\n")
    check_refusal("out", run, other, out)
    assert digests(out) == before
    assert [cell["seed"] for cell in run(other, out, overwrite=True).cells] == [3]
    assert not list(out.glob("*/*/*/*/seed=0"))
    # A file that was changed by hand is made again.
    (rows,) = out.glob("heads/*/*/*/*/heads.parquet")
    good = rows.read_bytes()
    rows.write_bytes(b"")
    assert run(other, out).kept == 0
    assert rows.read_bytes() == good


def test_two_batches_do_not_share_a_folder(two_by_two, tmp_path):
    first, second = (BatchState(tmp_path / "out", two_by_two) for _ in range(2))
    with first.open(), pytest.raises(HeadscopeError, match="another batch runs in"), second.open():
        pass
    with second.open():
        pass


def test_a_model_that_was_changed_is_not_mixed_with_the_old_one(job, tmp_path, small):
    mine = tmp_path / "mine"
    shutil.copytree(small, mine)
    submitted = job("models: [mine]\ntasks: [ioi]\nnumber: 2\nanalyses: [entropy, atlas]\n")
    out = tmp_path / "out"
    run(submitted, out)
    BatchState(out, submitted).forget(submitted.groups[0], "atlas")
    weights = load_file(mine / "model.safetensors")
    weights["lm_head.weight"] += 1
    save_file(weights, mine / "model.safetensors", metadata={"format": "pt"})
    worker._load.cache_clear()
    assert "model: mine is at revision" in str(refusal(run, submitted, out))


def test_shards_of_prompts_give_the_numbers_of_one_capture(job, tmp_path):
    text = (
        "models: [headscope/bundled]\ntasks: [{task: induction, number: 5}]\n"
        "analyses: [sinks, head_types, preplan_anchor]\noptions: {head_types: {draws: 1}}\n"
    )
    run(job(text), tmp_path / "whole")
    run(job(text + "shard: 2\n"), tmp_path / "parts")
    whole, parts = table(tmp_path / "whole"), table(tmp_path / "parts")
    assert set(parts["n"]) == {5}
    assert (parts["prompts_sha256"] == whole["prompts_sha256"]).all()
    assert (parts["variable"] == whole["variable"]).all()
    for column in ("value", "lower", "upper"):
        np.testing.assert_allclose(parts[column], whole[column], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_three_by_three_and_all_analyses_survive_ten_kills(three_by_three, tmp_path, digests):
    submitted = three_by_three
    whole = run(submitted, tmp_path / "whole")
    assert len(whole.cells) == 9 * len(analyses.names())
    assert len(whole.failed) < len(whole.cells) / 2
    expected = digests(tmp_path / "whole")
    kill(submitted, tmp_path / "killed", len(expected), 10)
    run(submitted, tmp_path / "killed")
    assert digests(tmp_path / "killed") == expected

"""A capture that goes to a file: the same numbers, and the same file after any number of kills."""

import errno
import hashlib
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
from refusals import check_message, check_refusal

from headscope.kernels.errors import HeadscopeError
from headscope.probes import capture, load_model
from headscope.probes.interventions import Ablate
from headscope.probes.storage import dataset_file

STATS = ("entropy", "received", "topk", "pooled_mean", "span_mass")


def prompts(ids: Any, number: int) -> list[list[int]]:
    return [ids(5 + seed % 23, seed=seed) for seed in range(number)]


def options(given: list[list[int]]) -> dict[str, Any]:
    spans = {"start": [[0, 1]] * len(given)}
    return {"stats": STATS, "keep": ("z", "resid"), "spans": spans, "k": 3, "batch_tokens": 40}


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_the_file_holds_what_memory_would(family, tmp_path, tiny, ids, words):
    model = load_model(tiny(family), tokenizer=words)
    given = prompts(ids, 12)
    edits = (Ablate(heads=((0, 1),)),)
    memory = capture(model, given, edits=edits, **options(given))
    seen: list[tuple[int, int]] = []
    file = capture(
        model, given, edits=edits, out=tmp_path / "a.safetensors",
        progress=lambda done, total: seen.append((done, total)), **options(given),
    )  # fmt: skip
    assert file.attrs.pop("batch_tokens") == 40
    xr.testing.assert_identical(file, memory)
    assert seen[-1] == (seen[-1][1], model.layers * sum(map(len, given)))
    assert [one.name for one in tmp_path.iterdir()] == ["a.safetensors"]
    again = dataset_file.load(tmp_path / "a.safetensors")
    again.attrs.pop("batch_tokens")
    xr.testing.assert_identical(again, memory)


def work(model: Any, given: list[list[int]], out: Path) -> None:
    capture(model, given, out=out, **options(given))


@pytest.mark.long
def test_ten_kills_leave_no_mark(tmp_path, tiny, ids):
    model = load_model(tiny("llama"))
    given = prompts(ids, 200)
    work(model, given, tmp_path / "whole.safetensors")
    expected = hashlib.sha256((tmp_path / "whole.safetensors").read_bytes()).hexdigest()
    out = tmp_path / "killed.safetensors"
    journal = out.with_name(f".{out.name}.journal")
    draw = random.Random(0)
    # A fork shares the model that is loaded, and so is killed in the middle of its work.
    context = multiprocessing.get_context("fork")
    reached = []
    for _ in range(10):
        before = len(journal.read_text().splitlines()) if journal.exists() else 0
        child = context.Process(target=work, args=(model, given, out))
        child.start()
        while child.is_alive():
            lines = len(journal.read_text().splitlines()) if journal.exists() else 0
            if lines > before + draw.randrange(3):
                break
            time.sleep(0.001)
        time.sleep(draw.random() * 0.01)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        reached.append(len(journal.read_text().splitlines()))
        assert not out.exists()
    assert reached == sorted(reached)
    work(model, given, out)
    assert hashlib.sha256(out.read_bytes()).hexdigest() == expected
    assert not list(tmp_path.glob(".*"))


class StopError(Exception):
    pass


def interrupt(model: Any, given: list[list[int]], out: Path) -> None:
    """Stop a capture in the middle, some of its batches on disk."""

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise StopError

    with pytest.raises(StopError):
        capture(model, given, out=out, progress=stop, **options(given))


def test_a_torn_journal_line_is_done_again(tmp_path, tiny, ids):
    model, given = load_model(tiny("llama")), prompts(ids, 30)
    out = tmp_path / "a.safetensors"
    interrupt(model, given, out)
    journal = out.with_name(f".{out.name}.journal")
    done = journal.read_text().splitlines()
    journal.write_text("\n".join(done) + "\n9")
    reports: dict[str, list[int]] = {"resumed": [], "whole": []}
    for way, file in (("resumed", {"out": out}), ("whole", {})):
        capture(
            model, given, progress=lambda n, total, way=way: reports[way].append(n),
            **file, **options(given),
        )  # fmt: skip
    xr.testing.assert_equal(dataset_file.load(out), capture(model, given, **options(given)))
    assert reports["resumed"][-1] == reports["whole"][-1]
    assert len(reports["resumed"]) < len(reports["whole"]), "what was done is not done again"


def test_half_a_capture_of_something_else_is_kept(tmp_path, tiny, ids):
    model, given = load_model(tiny("llama")), prompts(ids, 30)
    out = tmp_path / "a.safetensors"
    interrupt(model, given, out)
    other = given[:-1]
    with pytest.raises(HeadscopeError, match="half a capture of other prompts or options"):
        capture(model, other, out=out, **options(other))
    result = capture(model, other, out=out, overwrite=True, **options(other))
    assert result.sizes["prompt"] == 29
    check_message(r"out: .* exists", capture, model, other, out=out, **options(other))


@pytest.mark.parametrize("changed", ["spans", "targets"])
def test_half_a_capture_of_other_positions_is_not_taken_up(changed, tmp_path, tiny, ids):
    model, given = load_model(tiny("llama")), prompts(ids, 30)
    stats = {"spans": ("span_mass",), "targets": ("target_mass",)}[changed]

    def mark(at: int) -> dict[str, Any]:
        if changed == "spans":
            return {"spans": {"one": [[at]] * len(given)}}
        return {"targets": {"one": [[[at]] * len(ids) for ids in given]}}

    def stop(done: int, total: int) -> None:
        raise StopError

    out = tmp_path / "a.safetensors"
    with pytest.raises(StopError):
        capture(model, given, stats, batch_tokens=40, out=out, progress=stop, **mark(0))
    check_refusal("out", capture, model, given, stats, batch_tokens=40, out=out, **mark(1))
    capture(model, given, stats, batch_tokens=40, out=out, **mark(0))


def test_a_full_disk_shows_before_anything_is_computed(tmp_path, tiny, ids, monkeypatch):
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    model, given = load_model(tiny("llama")), prompts(ids, 3)
    check_refusal("out", capture, model, given, out=tmp_path / "a.safetensors", **options(given))
    assert not list(tmp_path.iterdir())

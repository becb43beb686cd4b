"""Run folders: written last to first, refused before anything is computed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from refusals import check_message, check_refusal

from headscope.kernels.errors import InvalidInput
from headscope.probes import capture, load_model
from headscope.probes.storage import run_folder


@pytest.fixture(scope="module")
def captured(folder: Path) -> xr.Dataset:
    return capture(load_model(folder), [[0, 5, 6], [0, 7]], stats=("entropy",))


def everything(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


def test_a_run_is_read_back(captured, tmp_path):
    made = run_folder.create(tmp_path / "runs" / "one", captured, prompts="a.txt", options={"n": 2})
    opened = run_folder.open(str(tmp_path / "runs" / "one"))
    assert opened.manifest == made.manifest
    assert opened.name == "one"
    assert opened.manifest["model"] == captured.attrs["model"]
    assert opened.manifest["revision"] == captured.attrs["revision"]
    assert opened.manifest["prompts_sha256"] == captured.attrs["prompts_sha256"]
    assert (opened.manifest["prompts"], opened.manifest["options"]) == ("a.txt", {"n": 2})
    xr.testing.assert_identical(opened.capture, captured)
    assert opened.prompts() == [[0, 5, 6], [0, 7]]
    assert opened.results() == {}


def test_results_are_kept_by_name(captured, tmp_path):
    made = run_folder.create(tmp_path / "one", captured)
    first = xr.Dataset({"score": ("head", np.ones(2))}, attrs={"analysis": "b"})
    made.save_result("b", first * 0)
    made.save_result("b", first)
    made.save_result("a", first)
    result = run_folder.open(tmp_path / "one").results()
    assert list(result) == ["a", "b"]
    xr.testing.assert_identical(result["b"], first)


def test_a_run_is_not_replaced_unasked(captured, tmp_path):
    made = run_folder.create(tmp_path / "one", captured)
    made.save_result("a", xr.Dataset({"score": ("head", np.ones(2))}))
    check_refusal("out", run_folder.create, tmp_path / "one", captured)
    assert list(run_folder.open(tmp_path / "one").results()) == ["a"]
    run_folder.create(tmp_path / "one", captured, replace=True)
    assert run_folder.open(tmp_path / "one").results() == {}


def test_files_of_others_are_never_touched(captured, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for more in ({}, {"replace": True}):
        check_message(r"^out: .* holds other files", run_folder.create, tmp_path, captured, **more)
    assert everything(tmp_path) == ["thesis.tex"]


def test_a_check_leaves_no_trace(tmp_path):
    run_folder.check(tmp_path / "a" / "b")
    assert everything(tmp_path) == []


@pytest.mark.parametrize("place", ["file/run", "file", "/proc/self/run"])
def test_folders_that_cannot_be_written_are_refused(place, captured, tmp_path):
    (tmp_path / "file").write_text("")
    for work, *more in ((run_folder.check,), (run_folder.create, captured)):
        check_message(r"^out: .* cannot be written", work, tmp_path / place, *more)
    assert everything(tmp_path) == ["file"]


def test_a_run_that_fails_on_the_way_is_no_run(captured, tmp_path, monkeypatch):
    run_folder.create(tmp_path / "one", captured)

    def fail(*given: Any) -> None:
        raise InvalidInput("path: the disk is full")

    monkeypatch.setattr(run_folder.dataset_file, "save", fail)
    check_refusal("path", run_folder.create, tmp_path / "one", captured, replace=True)
    check_refusal("run", run_folder.open, tmp_path / "one")


def test_folders_that_are_no_run_are_refused(tmp_path):
    for text, start in (
        (None, "holds no manifest.json"),
        ("{", "is broken"),
        ("[]", "was not written by this version"),
        (json.dumps({"format": "other"}), "was not written by this version"),
    ):
        if text is not None:
            (tmp_path / "manifest.json").write_text(text)
        check_message(f"^run: .*{start}", run_folder.open, tmp_path)

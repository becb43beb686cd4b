"""A model on disk is checked once: when it is checked again, and what happens to a bad cache."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import check_refusal, refusal
from safetensors.torch import load_file, save_file
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers.models.llama import modeling_llama

from headscope.probes import load_model
from headscope.probes.attention import load_check, load_check_cache
from headscope.probes.models.model import Model

Load = Callable[..., tuple[Model, int]]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Load]:
    """Load a model with a cache folder of its own, and count its forward passes meanwhile."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(load_check_cache.VARIABLE)
    passed = 0

    def count(part: Any, given: Any) -> None:
        nonlocal passed
        passed += type(part).__name__ == "LlamaModel"

    handle = register_module_forward_pre_hook(count)

    def loaded(*source: Any, **options: Any) -> tuple[Model, int]:
        before = passed
        return load_model(*source, **options), passed - before

    yield loaded
    handle.remove()


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny llama's folder, to be changed."""
    return Path(shutil.copytree(folder, tmp_path / "model"))


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("checks/*.json"))


def test_the_second_load_runs_no_forward_pass(load, own, tmp_path):
    first, passed = load(own)
    assert passed > 0
    assert len(kept(tmp_path)) == 1
    second, passed = load(str(own))
    assert passed == 0
    assert second.geometry == first.geometry
    assert second.geometry.heads == 4


def test_a_user_can_ask_for_the_check(load, own, monkeypatch):
    load(own)
    monkeypatch.setenv(load_check_cache.VARIABLE, "always")
    assert load(own)[1] > 0
    monkeypatch.setenv(load_check_cache.VARIABLE, "never")
    check_refusal("HEADSCOPE_CHECK", load, own)


def test_objects_are_always_checked(load, own, tmp_path):
    module = load(own)[0].module
    assert load(module)[1] > 0
    assert load(module)[1] > 0
    assert len(kept(tmp_path)) == 1


def change_a_weight(own: Path, monkeypatch: Any) -> None:
    file = own / "model.safetensors"
    before = file.stat()
    weights = load_file(file)
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, file, metadata={"format": "pt"})
    # Even where the file looks as before.
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size


def change_the_config(own: Path, monkeypatch: Any) -> None:
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))


def change_the_code(own: Path, monkeypatch: Any) -> None:
    plain = modeling_llama.apply_rotary_pos_emb
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda *given: plain(*given))


def change_a_version(own: Path, monkeypatch: Any) -> None:
    true = load_check_cache.version
    monkeypatch.setattr(
        load_check_cache, "version", lambda name: "6.0" if name == "transformers" else true(name)
    )


def change_our_source(own: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(load_check_cache, "_own_code", lambda: "another")


@pytest.mark.parametrize(
    "change",
    [change_a_weight, change_the_config, change_the_code, change_a_version, change_our_source],
)
def test_whatever_changes_the_outcome_checks_again(change, load, own, monkeypatch):
    load(own)
    assert load(own)[1] == 0
    change(own, monkeypatch)
    assert load(own)[1] > 0


def test_another_number_format_is_checked_by_itself(load, own):
    load(own)
    assert load(own, dtype="bfloat16")[1] > 0
    assert load(own, dtype="bfloat16")[1] == 0
    assert load(own)[1] == 0


def test_a_refused_model_is_refused_again(load, own, tmp_path):
    weights = load_file(own / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, own / "model.safetensors", metadata={"format": "pt"})
    for _ in range(2):
        assert "holds NaN" in str(refusal(load, own))
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"identity": {}}', "\x00\xff", '{"identity": 3}']
)
def test_a_broken_file_is_no_pass(text, load, own, tmp_path):
    whole, _ = load(own)
    (file,) = kept(tmp_path)
    before = file.read_text()
    file.write_text(text)
    again, passed = load(own)
    assert passed > 0
    assert again.geometry == whole.geometry
    assert file.read_text() == before
    for geometry in ({}, {"layers": "x"}, [1, 2]):
        file.write_text(json.dumps({**json.loads(before), "geometry": geometry}))
        assert load(own)[1] > 0


def test_a_pass_of_another_model_is_not_taken(load, own, tmp_path):
    load(own)
    (file,) = kept(tmp_path)
    other = json.loads(file.read_text())
    other["identity"]["revision"] = "sha256:0"
    file.write_text(json.dumps(other))
    assert load(own)[1] > 0


@pytest.mark.parametrize("home", ["/dev/null/cache", "/proc/cache"])
def test_a_cache_that_cannot_be_written_only_costs_time(home, load, own, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    assert load(own)[1] > 0
    assert load(own)[1] > 0


def test_what_the_file_cannot_hold_is_not_kept(load, own, tmp_path, monkeypatch):
    plain = load_check.inspect
    monkeypatch.setattr(load_check, "inspect", lambda one: replace(plain(one), name="found out"))
    assert load(own)[0].name == "found out"
    assert kept(tmp_path) == []
    assert load(own)[0].name == "found out"

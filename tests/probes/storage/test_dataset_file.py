"""Files: exact round trips, and nothing half-written whatever happens."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from refusals import check_message, check_refusal
from safetensors.numpy import save_file

from headscope.kernels.errors import HeadscopeError
from headscope.probes import capture, load_model
from headscope.probes.storage import dataset_file


@pytest.fixture
def mixed() -> xr.Dataset:
    """A Dataset with every kind of value that is stored."""
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    values[1, 2, 3] = np.nan
    values[0, 0, 0] = -np.inf
    return xr.Dataset(
        {
            "entropy": (("layer", "head", "query"), values, {"units": "nats", "low": 0.0}),
            "number": ((), np.float64(0.1)),
            "count": ("layer", np.array([1, -2])),
            "flag": ("head", np.array([True, False, True])),
            "half": ("layer", np.array([1.5, np.nan], dtype=np.float16)),
            "name": ("head", np.array(["ä", "", "▁the"])),
            "empty": (("none", "head"), np.zeros((0, 3), dtype=np.float32)),
            "turned": (("query", "layer"), np.arange(8.0).reshape(2, 4).T),
        },
        coords={
            "layer": [4, 7],
            "head": np.arange(3),
            "token": (("layer", "query"), np.array([list("abcd"), ["", "\n", " x", '"']])),
            "run": "one",
        },
        attrs={"stats": ["entropy"], "seed": 3, "nested": {"a": [1, None, True]}, "nan": "NaN"},
    )


def bare(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_round_trip_is_exact(mixed, tmp_path):
    dataset_file.save(mixed, tmp_path / "a.safetensors")
    result = dataset_file.load(tmp_path / "a.safetensors")
    xr.testing.assert_identical(result, mixed)
    assert list(result.data_vars) == list(mixed.data_vars)
    for name, variable in mixed.variables.items():
        assert result[name].dtype == variable.dtype, name
        assert result[name].dims == variable.dims
    assert bare(tmp_path) == ["a.safetensors"]


def test_a_capture_round_trips(folder, tmp_path):
    result = capture(load_model(folder), ["w1 w2 w1 w3", "w1"], keep=("q", "k", "resid"))
    dataset_file.save(result, tmp_path / "capture.safetensors")
    loaded = dataset_file.load(tmp_path / "capture.safetensors")
    xr.testing.assert_identical(loaded, result)
    assert loaded.attrs == result.attrs


def test_numpy_values_in_attrs_become_plain(tmp_path):
    given = xr.Dataset(attrs={"one": np.float32(0.5), "many": np.arange(2)})
    dataset_file.save(given, tmp_path / "a.safetensors")
    assert dataset_file.load(tmp_path / "a.safetensors").attrs == {"one": 0.5, "many": [0, 1]}


def test_values_without_a_place_are_refused(tmp_path):
    for values in (np.array([object()]), np.array(["2020-01-01"], dtype="datetime64[D]")):
        with pytest.raises(HeadscopeError, match=r"^bad: "):
            dataset_file.save(xr.Dataset({"bad": ("x", values)}), tmp_path / "a.safetensors")
    with pytest.raises(HeadscopeError, match=r"^dataset: an attr of type object"):
        dataset_file.save(xr.Dataset(attrs={"bad": object()}), tmp_path / "a.safetensors")
    assert bare(tmp_path) == []


def test_files_that_are_no_dataset_are_refused(mixed, tmp_path):
    check_message(r"^path: there is no file ", dataset_file.load, tmp_path / "none.safetensors")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": np.ones(2)}, foreign)
    check_message(r"foreign\.safetensors was not written by headscope", dataset_file.load, foreign)
    dataset_file.save(mixed, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    broken = tmp_path / "broken.safetensors"
    for data in (b"", b"nonsense", whole[:40], whole[:-7]):
        broken.write_bytes(data)
        check_message(r"broken\.safetensors is broken", dataset_file.load, broken)


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_old_file(mixed, tmp_path):
    path = tmp_path / "a.safetensors"
    dataset_file.save(mixed, path)
    large = xr.Dataset({"large": ("x", np.ones(100_000))})
    with full_disk(50_000):
        check_message(r"^path: .* cannot be written", dataset_file.save, large, path)
    assert bare(tmp_path) == ["a.safetensors"]
    xr.testing.assert_identical(dataset_file.load(path), mixed)
    text = tmp_path / "text.json", "x" * 1000
    with full_disk(10):
        check_message(r"^path: .* cannot be written", dataset_file.write_text, *text)
    assert bare(tmp_path) == ["a.safetensors"]


def test_folders_that_cannot_be_written_are_refused(mixed, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a", tmp_path / "none" / "a", "/proc/self/a.safetensors"):
        check_refusal("path", dataset_file.save, mixed, path)
    assert bare(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError])
def test_an_interrupted_write_leaves_nothing(error, mixed, tmp_path, monkeypatch):
    def interrupted(fd: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", interrupted)  # when all bytes are written, but not yet safe
    with pytest.raises(error):
        dataset_file.save(mixed, tmp_path / "a.safetensors")
    assert bare(tmp_path) == []


def test_a_killed_writer_never_leaves_half_a_file(tmp_path):
    code = (
        "import sys, numpy as np, xarray as xr\n"
        "from headscope.probes.storage import dataset_file\n"
        "data = [xr.Dataset({'a': ('x', np.full(2_000_000, at))}) for at in (1.0, 2.0)]\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    for one in data: dataset_file.save(one, sys.argv[1])\n"
    )
    path = tmp_path / "a.safetensors"
    command = [sys.executable, "-P", "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        whole = 0
        while whole < 15:
            assert writer.poll() is None, "the writer goes on until it is killed"
            if path.exists():
                whole += 1
                values: Any = dataset_file.load(path)["a"].values
                assert values.shape == (2_000_000,)
                assert values.min() == values.max()
        writer.kill()
    values = dataset_file.load(path)["a"].values
    assert values.min() == values.max()


def test_the_same_dataset_gives_the_same_bytes(tmp_path):
    dataset = xr.Dataset({"a": ("layer", np.ones(2))}, attrs={"note": 'a "quoted" ü'})
    written = set()
    for _ in range(20):
        dataset_file.save(dataset, tmp_path / "a.safetensors")
        written.add((tmp_path / "a.safetensors").read_bytes())
    assert len(written) == 1
    xr.testing.assert_identical(dataset_file.load(tmp_path / "a.safetensors"), dataset)

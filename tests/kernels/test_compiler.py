"""Building the sweep: once, safely side by side, and torch's numbers where it cannot be built."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attention_inputs import check_same
from refusals import check_refusal

from headscope.kernels.attention import attend
from headscope.kernels.compiled import compiler, library

EMPTY = " ".join(
    f"int {name}() {{{{ return 0; }}}}" for name in ("sweep", "memory_bytes", "amx_available")
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Build into an empty folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(compiler.VARIABLE, raising=False)
    library.library.cache_clear()
    yield tmp_path / "headscope"
    library.library.cache_clear()


def script(folder: Path, text: str) -> str:
    """Write a program that plays the compiler."""
    path = folder / "pretender"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


REAL = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
# The file after -o is where the library goes.
FIND_OUTPUT = 'while [ "$1" != -o ]; do shift; done; '


def test_a_compiler_on_the_path_builds_the_sweep():
    assert (library.library().run is not None) == (REAL is not None), library.library().note
    assert "built by" in library.library().note or REAL is None


def test_a_library_is_built_once(cache):
    first = compiler.build(library.SOURCE)
    assert first.path is not None
    before = first.path.stat().st_mtime_ns
    assert compiler.build(library.SOURCE) == first
    assert first.path.stat().st_mtime_ns == before
    assert list(cache.iterdir()) == [first.path]


def test_another_text_is_another_library(cache, tmp_path):
    result = {compiler.build(library.SOURCE).path}
    for number, name in enumerate(("sweep.c", "amx_tiles.inc.c")):
        folder = tmp_path / str(number)
        shutil.copytree(library.SOURCE.parent, folder)
        (folder / name).write_text((folder / name).read_text() + "\n")
        result.add(compiler.build(folder / "sweep.c").path)
    assert len(result) == 3
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize(
    ("pretend", "reason"),
    [
        ("off", "switched off by HEADSCOPE_COMPILER=off"),
        ("/nowhere/cc", "HEADSCOPE_COMPILER=/nowhere/cc is no program; unset it or"),
        ("echo boom >&2; exit 3", "failed: boom"),
        ("exit 3", "failed: ended with 3"),
        ("exit 0", "failed: ended with 0"),
        (FIND_OUTPUT + 'echo text > "$2"', "it does not load"),
        (FIND_OUTPUT + 'echo "int other;" | {real} -shared -x c -o "$2" -', "it does not load"),
        (
            FIND_OUTPUT + f'echo "{EMPTY}" | {{real}} -shared -x c -o "$2" -',
            "it computes other numbers than torch",
        ),
    ],
)  # fmt: skip
def test_without_a_sweep_numbers_are_those_of_torch(pretend, reason, draw, tmp_path, monkeypatch):
    if pretend not in ("off", "/nowhere/cc"):
        pretend = script(tmp_path, pretend.format(real=REAL))
    monkeypatch.setenv(compiler.VARIABLE, pretend)
    assert library.library().run is None
    assert reason in library.library().note
    inputs = draw(50)
    check_same(attend(*inputs), attend(*inputs, engine="panels"))
    check_refusal("engine", attend, *inputs, engine="compiled")


def test_without_any_compiler_on_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no C compiler (cc, gcc, clang) on the PATH; install one" in library.library().note


def test_a_cache_that_cannot_be_written(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    assert "set XDG_CACHE_HOME to a folder that can be written" in library.library().note


def test_a_compiler_that_never_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(compiler, "SECONDS", 0.2)
    monkeypatch.setenv(compiler.VARIABLE, script(tmp_path, "exec sleep 60"))
    assert "took longer than 0.2 s" in library.library().note


@pytest.mark.parametrize("unknown", ["-march=*", "-m*"], ids=["one name", "any processor"])
def test_compilers_that_do_not_know_the_processor(unknown, draw, tmp_path, monkeypatch):
    # The last resort is the plainest processor of its kind: narrow vectors, the same numbers.
    refuse = f'for word in "$@"; do case $word in {unknown}) exit 1;; esac; done; exec {REAL} "$@"'
    monkeypatch.setenv(compiler.VARIABLE, script(tmp_path, refuse))
    assert library.library().run is not None, library.library().note
    inputs = draw(130)
    compiled, panels = (attend(*inputs, engine=engine) for engine in ("compiled", "panels"))
    check_same(compiled, panels, 2e-6, leave=("topk_key", "effective_span", "span_without_first"))


def test_processes_that_build_at_once_share_one_library(cache, tmp_path):
    slow = script(tmp_path, f'sleep 0.5; exec {REAL} "$@"')
    program = (
        "from pathlib import Path; from headscope.kernels.compiled import compiler; import ctypes;"
        f"built = compiler.build(Path({str(library.SOURCE)!r}));"
        "ctypes.CDLL(str(built.path)).sweep; print(built.path)"
    )
    environment = {**os.environ, compiler.VARIABLE: slow}
    command, pipe = [sys.executable, "-P", "-c", program], subprocess.PIPE
    running = [
        subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
        for _ in range(3)
    ]
    outcomes = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], outcomes
    paths = {out.strip() for out, _ in outcomes}
    assert len(paths) == 1
    assert [str(path) for path in cache.iterdir()] == list(paths)

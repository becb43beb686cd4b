"""Build a C file once with the machine's compiler, into the user's cache folder."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "HEADSCOPE_COMPILER"
"""Environment variable: ``off``, or the compiler to take; unset is cc, gcc or clang."""

NAMES = ("cc", "gcc", "clang")
PROCESSORS = (("-march=native",), ("-mcpu=native",), ())
"""Flags that enable all instructions of this processor; no compiler accepts them all."""
FLAGS = ("-std=gnu11", "-O3", "-w", "-shared", "-fPIC")
SOURCES = ("*.py", "*.c", "*.h")
"""Files of the engines, by which their fingerprint is taken."""
SECONDS = 120
"""Longest time that a build may take."""


@dataclass(frozen=True)
class Build:
    """Outcome of a build."""

    path: Path | None
    note: str


def build(source: Path) -> Build:
    """Build a shared library, or take it from the cache; nothing is raised when it fails."""
    compiler = find_compiler()
    if isinstance(compiler, Build):
        return compiler
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        target = folder / f"{source.stem}-{cache_key(source, compiler)}.so"
        if target.exists():
            return Build(target, f"built by {compiler}, kept in {folder}")
        return compile_into(target, source, compiler)
    except OSError as error:
        return Build(None, f"{error}; set XDG_CACHE_HOME to a folder that can be written")


def find_compiler() -> Path | Build:
    """Find a compiler, or the reason why there is none."""
    requested = os.environ.get(VARIABLE, "")
    if requested == "off":
        return Build(None, f"switched off by {VARIABLE}=off")
    for name in (requested,) if requested else NAMES:
        program = shutil.which(name)
        if program:
            return Path(program)
    if requested:
        return Build(None, f"{VARIABLE}={requested} is no program; unset it or name a C compiler")
    return Build(None, f"no C compiler ({', '.join(NAMES)}) on the PATH; install one, such as gcc")


def cache_folder() -> Path:
    """Return the folder of the built libraries."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "headscope"


def cache_key(source: Path, compiler: Path) -> str:
    """Digest what makes another library: text, flags, compiler and processor."""
    program = compiler.resolve()
    status = program.stat()
    folder = source.parent
    parts = (
        source.read_bytes(),
        *(part.read_bytes() for part in sorted((*folder.glob("*.h"), *folder.glob("*.inc.c")))),
        repr((FLAGS, PROCESSORS, str(compiler), str(program))).encode(),
        repr((status.st_size, status.st_mtime_ns)).encode(),
        processor().encode(),
    )
    digests = b"".join(hashlib.sha256(part).digest() for part in parts)
    return hashlib.sha256(digests).hexdigest()[:20]


def processor() -> str:
    """Describe the processor: a home folder may be shared by machines that are not alike."""
    words = [sys.platform, platform.machine(), platform.processor()]
    about = Path("/proc/cpuinfo")
    if about.exists():
        prefixes = ("model name", "flags", "Features", "CPU part")
        words += sorted(
            {line for line in about.read_text().splitlines() if line.startswith(prefixes)}
        )
    return "\n".join(words)


def engine_fingerprint() -> str:
    """Digest the sources of the engines, the processor and the choice of a compiler.

    Results that were checked under another fingerprint may not hold under this one.
    """
    folder = Path(__file__).parents[1]
    files = sorted(file for pattern in SOURCES for file in folder.rglob(pattern))
    stats = [(str(file.relative_to(folder)), file.stat()) for file in files]
    parts = [
        *(f"{name} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}" for name, stat in stats),
        processor(),
        os.environ.get(VARIABLE, ""),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


def compile_into(target: Path, source: Path, compiler: Path) -> Build:
    """Compile, and put the library in its place at once: others may be building it as well."""
    handle, name = tempfile.mkstemp(dir=target.parent, suffix=".part")
    os.close(handle)
    part, note = Path(name), ""
    try:
        for native in PROCESSORS:
            command = [str(compiler), *FLAGS, *native, "-o", str(part), str(source), "-lm"]
            try:
                process = subprocess.run(
                    command, capture_output=True, text=True, errors="replace", timeout=SECONDS
                )
            except subprocess.TimeoutExpired:
                return Build(None, f"{compiler} took longer than {SECONDS} s")
            if process.returncode == 0 and part.stat().st_size:
                part.replace(target)
                return Build(target, f"built by {compiler}, kept in {target.parent}")
            message = process.stderr.strip() or f"ended with {process.returncode}"
            complaint = message.splitlines()[0]
            note = note or f"{compiler} failed: {complaint}"
        return Build(None, note)
    finally:
        part.unlink(missing_ok=True)

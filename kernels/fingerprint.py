"""Fingerprint of the engines: sources, processor and compiler."""

import hashlib
import os
from pathlib import Path

from headscope.kernels.compiled import compiler

SOURCES = ("*.py", "*.c", "*.h")


def engine_fingerprint() -> str:
    """Digest the sources of the engines, the processor and the choice of a compiler.

    Results that were checked under another fingerprint may not hold under this one.
    """
    folder = Path(__file__).parent
    files = sorted(file for pattern in SOURCES for file in folder.rglob(pattern))
    stats = [(str(file.relative_to(folder)), file.stat()) for file in files]
    parts = [
        *(f"{name} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}" for name, stat in stats),
        compiler.processor(),
        os.environ.get(compiler.VARIABLE, ""),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]

"""Source files of the standard library of the running interpreter, in two parts by path."""

from __future__ import annotations

import hashlib
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# Tests, tables and build products are text of another kind; site-packages is not the library.
FOLDERS = frozenset(
    {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}
)
FILES = re.compile(r"_sysconfigdata|html/entities\.py|config-|_bundled/|stringprep\.py|^s?re[/_]")
# The library holds files under terms of their own beside those of the PSF; `re` is one of them.
OTHER_TERMS = re.compile(
    r"Permission\s+to\s+use,\s+copy|Permission\s+is\s+hereby\s+granted|Apache\s+License"
    r"|Redistribution\s+and\s+use|can\s+be\s+redistributed\s+under"
)
ONE_IN = 10


@dataclass(frozen=True)
class Source:
    """A file of the library: its path there, with forward slashes, and its text."""

    path: str
    text: str


def is_held_out(path: PurePosixPath) -> bool:
    """Whether training leaves a file out; the same for a path in every version of Python."""
    return hashlib.sha256(str(path).encode()).digest()[0] % ONE_IN == 0


def library() -> Path:
    """The folder of the standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def wanted(path: PurePosixPath) -> bool:
    """Whether a file of the library counts as written source.

    >>> wanted(PurePosixPath("json/decoder.py")), wanted(PurePosixPath("test/test_json.py"))
    (True, False)
    """
    return not FOLDERS.intersection(path.parts) and not FILES.search(str(path))


def sources(held_out: bool) -> list[Source]:
    """Read the files that are held out, or those to train on, in order of their paths.

    Files of one path fall on the same side in every version of Python. Files that state terms of
    their own are left out.

    >>> any(one.path == "argparse.py" for one in sources(held_out=False) + sources(held_out=True))
    True
    """
    found = []
    for file in sorted(library().rglob("*.py")):
        path = PurePosixPath(file.relative_to(library()).as_posix())
        if not wanted(path) or is_held_out(path) != held_out:
            continue
        try:
            text = file.read_bytes().decode()
        except UnicodeDecodeError:
            continue  # a file in another encoding, which Python itself has to be told
        if text.strip() and not OTHER_TERMS.search(text):
            found.append(Source(str(path), text.replace("\r\n", "\n")))
    return found

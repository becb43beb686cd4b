"""Source files of the running Python's standard library: real text on every machine.

The library is in two parts by path: `headscope/bundled-python` was trained on one of them, and
prompts are cut from the other.
"""

import hashlib
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from headscope.kernels.errors import InvalidInput
from headscope.probes.bundled import folder
from headscope.probes.models.source import fetch_tokenizer

# Tests, tables and build products are text of another kind; site-packages is not the library.
EXCLUDED_FOLDERS = frozenset(
    {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}
)
EXCLUDED_FILES = re.compile(
    r"_sysconfigdata|html/entities\.py|config-|_bundled/|stringprep\.py|^s?re[/_]"
)
# The library holds files under terms of their own beside those of the PSF; `re` is one of them.
OTHER_TERMS = re.compile(
    r"Permission\s+to\s+use,\s+copy|Permission\s+is\s+hereby\s+granted|Apache\s+License"
    r"|Redistribution\s+and\s+use|can\s+be\s+redistributed\s+under"
)
HELD_OUT_ONE_IN = 10
# More characters than any tokenizer's tokens hold on average, so that little is read in vain.
CHARACTERS_A_TOKEN = 24


@dataclass(frozen=True)
class LibraryFile:
    """A file of the library: its path there, with forward slashes, and its text."""

    path: str
    text: str


def is_held_out(path: PurePosixPath) -> bool:
    """Whether training leaves a file out; the same for a path in every version of Python."""
    return hashlib.sha256(str(path).encode()).digest()[0] % HELD_OUT_ONE_IN == 0


def is_written_source(path: PurePosixPath) -> bool:
    """Whether a file of the library counts as written source."""
    return not EXCLUDED_FOLDERS.intersection(path.parts) and not EXCLUDED_FILES.search(str(path))


def read_library(held_out: bool) -> list[LibraryFile]:
    """Read the files that are held out, or those to train on, in order of their paths.

    Files of one path fall on the same side in every version of Python. Files that state terms of
    their own are left out.

    >>> files = read_library(held_out=False) + read_library(held_out=True)
    >>> any(file.path == "argparse.py" for file in files)
    True
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for file in sorted(root.rglob("*.py")):
        path = PurePosixPath(file.relative_to(root).as_posix())
        if not is_written_source(path) or is_held_out(path) != held_out:
            continue
        try:
            text = file.read_bytes().decode()
        except UnicodeDecodeError:
            continue  # a file in another encoding, which Python itself must be given
        if text.strip() and not OTHER_TERMS.search(text):
            files.append(LibraryFile(str(path), text.replace("\r\n", "\n")))
    return files


def openings(number: int = 8, tokens: int = 512, tokenizer: Any = None) -> list[str]:
    """Return the first `tokens` tokens of held-out files of the running Python's library.

    Parameters
    ----------
    number
        How many files, longest first.
    tokens
        Length of a prompt in tokens with the one before the text, at least 16; cut to whole lines.
    tokenizer
        What to count in: the tokenizer of your model; default: that of `headscope/bundled-python`.

    Examples
    --------
    >>> text = openings(number=1, tokens=64)[0]
    >>> text.endswith("\\n")
    True
    """
    if number < 1 or tokens < 16:
        raise InvalidInput(
            f"number, tokens: {number} prompts of {tokens}; use 1 or more of 16 or more"
        )
    if tokenizer is None:
        tokenizer = fetch_tokenizer(folder("headscope/bundled-python"))
    files = sorted(read_library(held_out=True), key=lambda file: (-len(file.text), file.path))
    cut = (_cut(file.text, tokens, tokenizer) for file in files[:number])
    texts = [text for text in cut if text is not None]
    if len(texts) < number:
        raise InvalidInput(
            f"number: {len(texts)} held-out files of this Python's library have {tokens} tokens; "
            "ask for fewer or shorter prompts"
        )
    return texts


def _cut(text: str, tokens: int, tokenizer: Any) -> str | None:
    """Return as many whole lines as fit, or None where the text is shorter than that."""
    text = text[: CHARACTERS_A_TOKEN * tokens]
    if _count(text, tokenizer) <= tokens:
        return None
    lines = text.splitlines(keepends=True)
    low, high = 0, len(lines)
    while low + 1 < high:
        middle = (low + high) // 2
        fits = _count("".join(lines[:middle]), tokenizer) <= tokens
        low, high = (middle, high) if fits else (low, middle)
    return "".join(lines[:low]) or None


def _count(text: str, tokenizer: Any) -> int:
    """Count tokens, with the one before the text."""
    ids = tokenizer(text, verbose=False)["input_ids"]
    return len(ids) + int(ids[:1] != [tokenizer.bos_token_id])

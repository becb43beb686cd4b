"""Files of prompts, read and written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headscope.kernels.errors import InvalidInput
from headscope.probes.models.pair import Pair

if TYPE_CHECKING:
    from headscope.probes.prompts.task import Task


def read_prompts(path: Path) -> list[str] | list[Pair] | Task:
    """Read a prompt file: a prompt a line, or JSONL of texts, pairs or a task."""
    from headscope.probes.prompts import tasks

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InvalidInput(f"prompts: {path} cannot be read: {reason}") from error
    if path.suffix != ".jsonl":
        texts = lines
    elif _holds("text", lines):
        texts = [_field(path, at, line, "text") for at, line in enumerate(lines, 1)]
    elif _holds("source", lines):
        return [
            Pair(_field(path, at, line, "source"), _field(path, at, line, "target"))
            for at, line in enumerate(lines, 1)
        ]
    else:
        return tasks.make(path)
    for at, text in enumerate(texts, 1):
        if not text.strip():
            raise InvalidInput(
                f"prompts: {path}:{at} is empty; write a prompt there or drop the line"
            )
    if not texts:
        raise InvalidInput(f"prompts: {path} is empty; write one prompt a line")
    return texts


def write_texts(file: Path, number: int, tokens: int) -> None:
    """Write openings of library files as JSONL, as `read_prompts` reads it."""
    from headscope.probes.prompts.library import openings
    from headscope.probes.storage.dataset_file import refusing

    lines = [json.dumps({"text": text}) + "\n" for text in openings(number, tokens)]
    with refusing("--out", file):
        file.write_text("".join(lines), encoding="utf-8")


def _holds(name: str, lines: Sequence[str]) -> bool:
    """Tell what a file holds by its first line that can be read; others are reported later."""
    for line in lines:
        try:
            return name in json.loads(line)
        except (json.JSONDecodeError, TypeError):
            continue
    return False


def _field(path: Path, at: int, line: str, name: str) -> str:
    try:
        text = json.loads(line)[name]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InvalidInput(f'prompts: {path}:{at} is not an object {{"{name}": "..."}}') from error
    if not isinstance(text, str):
        raise InvalidInput(f"prompts: {path}:{at}: {name} is a {type(text).__name__}, not a string")
    if not text.strip():
        raise InvalidInput(f"prompts: {path}:{at} is empty; write a {name} there or drop the line")
    return text

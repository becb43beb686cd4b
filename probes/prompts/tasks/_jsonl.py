"""Tasks from a file of the user's own prompts, one JSON object a line."""

import json
import os
import re
from pathlib import Path
from typing import Any

from headscope.kernels.errors import HeadscopeError, InvalidInput
from headscope.probes.prompts.task import METRICS, Prompt, Question, Task
from headscope.probes.prompts.tokens import GLUED

REQUIRED = ("clean", "corrupted", "answers", "wrong")
OPTIONAL = ("at", "evidence")
_SIGNS = re.escape("".join(sorted(GLUED)))
_WORD = re.compile(rf"[^\s{_SIGNS}](?:\S*[^\s{_SIGNS}])?|[{_SIGNS}]")


def _words(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(_WORD.findall(value))
    if isinstance(value, list) and all(isinstance(word, str) and word for word in value):
        return tuple(value)
    raise InvalidInput(f"{name}: give a text or a list of words")


def _places(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, list) and all(type(place) is int for place in value):
        return tuple(value)
    raise InvalidInput(f"{name}: give a list of word positions, 0 being the first word")


def _choices(name: str, value: Any) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    if isinstance(listed, list) and all(isinstance(word, str) and word for word in listed):
        return tuple(listed)
    raise InvalidInput(f"{name}: give a word or a list of words")


def _prompt(line: str) -> Prompt:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidInput(f"not JSON ({error.msg}); write one object a line") from None
    if not isinstance(entry, dict):
        raise InvalidInput("not a JSON object; write one object a line")
    for name in REQUIRED:
        if name not in entry:
            raise InvalidInput(f"{name}: missing; a line needs {', '.join(REQUIRED)}")
    for name in entry:
        if name not in (*REQUIRED, *OPTIONAL):
            raise InvalidInput(f"{name}: unknown; known are {', '.join((*REQUIRED, *OPTIONAL))}")
    clean = _words("clean", entry["clean"])
    at = entry.get("at", len(clean) - 1)
    if type(at) is not int:
        raise InvalidInput("at: give one word position, 0 being the first word")
    question = Question(
        at,
        _choices("answers", entry["answers"]),
        _choices("wrong", entry["wrong"]),
        _places("evidence", entry.get("evidence", [])),
    )
    return Prompt(clean, _words("corrupted", entry["corrupted"]), (question,))


def read(path: str | os.PathLike[str], *, metric: str = "logit_difference") -> Task:
    """Read a task from JSONL.

    A line is ``{"clean": text, "corrupted": text, "answers": [word], "wrong": [word]}``, with
    optional ``"at"`` (word position of the question, by default the last word) and ``"evidence"``
    (word positions of what decides it). A text is split into words at spaces and around
    ``, . ? ! : ;``; a list of words is taken as it stands. Blank lines are passed over.

    Parameters
    ----------
    path
        File to read, UTF-8.
    metric
        Metric of the task, one of `headscope.probes.prompts.task.METRICS`.

    Raises
    ------
    InvalidInput
        If the file is missing or empty, or a line is malformed (names file and line).

    Examples
    --------
    >>> import tempfile, pathlib
    >>> folder = tempfile.TemporaryDirectory()
    >>> file = pathlib.Path(folder.name, "mine.jsonl")
    >>> line = '{"clean": "a b", "corrupted": "a c", "answers": "d", "wrong": "e"}'
    >>> _ = file.write_text(line)
    >>> read(file).prompts[0].questions[0].at
    1
    >>> folder.cleanup()
    """
    if metric not in METRICS:
        raise InvalidInput(f"metric: {metric!r} is unknown; choose one of {', '.join(METRICS)}")
    file = Path(path)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InvalidInput(f"{file}: no such file; give the path of a .jsonl of prompts") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{file}: cannot be read as UTF-8 text ({error})") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompts.append(_prompt(line))
        except HeadscopeError as error:
            raise InvalidInput(f"{file}:{number}: {error}") from None
    if not prompts:
        raise InvalidInput(f"{file}: no prompts; write one JSON object a line")
    return Task(file.stem, tuple(prompts), metric, 0, f"Prompts of {file.name}.")

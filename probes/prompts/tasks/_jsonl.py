"""Tasks from a file of the user's own prompts, one JSON object a line."""

import json
import os
import re
import unicodedata
from pathlib import Path
from typing import Any

from headscope.kernels.errors import HeadscopeError, InvalidInput
from headscope.probes.prompts.task import Prompt, Question, Span, Task
from headscope.probes.prompts.writing import GLUED, join_words

REQUIRED = ("clean", "corrupted", "answers", "wrong")
OPTIONAL = ("at", "evidence", "exact")
_SIGNS = re.escape("".join(sorted(GLUED)))
_WORD = re.compile(rf"[^\s{_SIGNS}](?:\S*[^\s{_SIGNS}])?|[{_SIGNS}]")


def _text(name: str, value: Any) -> tuple[str, tuple[Span, ...]]:
    """Return a text as it stands, and where its words do."""
    if isinstance(value, str):
        return value, tuple(match.span() for match in _WORD.finditer(value))
    if isinstance(value, list) and all(isinstance(word, str) and word for word in value):
        return join_words(value)
    raise InvalidInput(f"{name}: give a text or a list of words")


def _span(position: Any, words: tuple[Span, ...]) -> Span:
    if type(position) is not int:
        raise InvalidInput("at: give one word position, 0 being the first word")
    if not 0 <= position < len(words):
        raise InvalidInput(f"at: position {position} is outside the prompt of {len(words)} words")
    return words[position]


def _choices(name: str, value: Any) -> list[str]:
    listed = [value] if isinstance(value, str) else value
    if isinstance(listed, list) and all(isinstance(word, str) and word for word in listed):
        return listed
    raise InvalidInput(f"{name}: give a text or a list of texts")


def spaced(before: str, continuation: str) -> str:
    """Prepend a space to a continuation without one, where a space belongs between words.

    None belongs at the start or behind a space, before a sign, between digits, behind an opening
    bracket, or beside the letters of a script that is written without spaces.

    >>> spaced("the dog is", "small"), spaced("the dog is", " small"), spaced("in 17", "32")
    (' small', ' small', '32')
    >>> spaced("the dog", "."), spaced("法国的首都是", "巴黎"), spaced("A:\\n", "yes")
    ('.', '巴黎', 'yes')
    """
    last, first = before[-1:], continuation[:1]
    joined = (
        not last
        or last.isspace()
        or first.isspace()
        or last in "([{'\"“‘"
        or first in ",.?!:;)]}'’”%"
        or (last.isdigit() and first.isdigit())
        or _runs_on(last)
        or _runs_on(first)
    )
    return continuation if joined else f" {continuation}"


def _runs_on(sign: str) -> bool:
    """Whether a sign belongs to a script without spaces between words."""
    names = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
    wide = unicodedata.east_asian_width(sign) in "WF"
    return wide or unicodedata.name(sign, "").startswith(names)


def _changes(
    texts: tuple[str, str], words: tuple[tuple[Span, ...], tuple[Span, ...]]
) -> tuple[tuple[Span, Span], ...]:
    """Return the words that differ, where the two texts are alike but for some words."""
    between = []
    for text, spans in zip(texts, words, strict=True):
        ends = [0, *(stop for _, stop in spans)]
        starts = [*(start for start, _ in spans), len(text)]
        between.append([text[end:start] for end, start in zip(ends, starts, strict=True)])
    if between[0] != between[1]:
        return ()
    return tuple(
        (clean, corrupted)
        for clean, corrupted in zip(*words, strict=True)
        if texts[0][slice(*clean)] != texts[1][slice(*corrupted)]
    )


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
    clean, words = _text("clean", entry["clean"])
    corrupted, others = _text("corrupted", entry["corrupted"])
    at = _span(entry["at"], words)[1] if "at" in entry else len(clean)
    evidence = entry.get("evidence", [])
    if not isinstance(evidence, list):
        raise InvalidInput("evidence: give a list of word positions, 0 being the first word")
    exact = entry.get("exact", False)
    if type(exact) is not bool:
        raise InvalidInput("exact: give true where answers bring the space before them, or false")
    answers, wrong = (
        tuple(text if exact else spaced(clean[:at], text) for text in _choices(name, entry[name]))
        for name in ("answers", "wrong")
    )
    question = Question(at, answers, wrong, tuple(_span(position, words) for position in evidence))
    return Prompt(
        clean, corrupted, (question,), changes=_changes((clean, corrupted), (words, others))
    )


def read(path: str | os.PathLike[str], *, metric: str = "logit_difference") -> Task:
    """Read a task from JSONL.

    A line is ``{"clean": text, "corrupted": text, "answers": [text], "wrong": [text]}``. Texts are
    kept as they stand, line feeds and quotes too; a list of words is joined. An answer may be of
    any length and is scored by its first token that the wrong ones do not share. It gets a space
    before it where one belongs there, unless the line has ``"exact": true``. Optional are ``"at"``
    (position of the word behind which the question stands, by default the end of the text) and
    ``"evidence"`` (positions of the words that decide it), counted from 0 with words split at
    spaces and around ``, . ? ! : ;``. Blank lines are passed over.

    Parameters
    ----------
    path
        File to read, UTF-8.
    metric
        Metric of the task, one of `headscope.probes.prompts.task.METRICS`.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> line = '{"clean": "a b", "corrupted": "a c", "answers": "d", "wrong": "e"}'
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "mine.jsonl").write_text(line)
    ...     read(f"{folder}/mine.jsonl").prompts[0].questions[0].at
    3
    """
    file = Path(path)
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
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

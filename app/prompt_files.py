"""Files of prompts, read and written."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.kernels.errors import InvalidInput
from headscope.probes.models.pair import Pair

if TYPE_CHECKING:
    from headscope.probes.prompts.task import Task

FIELDS = ("text", "prompt", "messages", "input_ids", "source")
TABLES = {".csv": ",", ".tsv": "\t"}


def read_prompts(path: Path) -> list[Any] | Task:
    """Read a prompt file by its ending: text, JSON, a table, or a task.

    ``.jsonl``, ``.ndjson`` and ``.json`` (a list) hold strings or objects with one of ``text``,
    ``prompt``, ``messages`` (a chat), ``input_ids``, or ``source`` and ``target``; objects with
    ``clean`` in ``.jsonl`` are a task. ``.csv`` and ``.tsv`` have a column ``text`` or ``prompt``.
    Any other ending is text, a prompt a line. An empty prompt or a malformed line is refused with
    its number.
    """
    from headscope.probes.prompts import tasks

    try:
        # Only a line feed ends a line: a text may hold any other separator.
        content = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InvalidInput(f"prompts: {path} cannot be read: {reason}") from error
    ending = path.suffix.lower()
    is_json = ending in tasks.FILES
    if is_json and _is_task(content):
        return tasks.make(path)
    if ending in TABLES:
        entries = _table_rows(path, content, TABLES[ending])
    elif ending == ".json":
        entries = _json_list(path, content)
    else:
        entries = _lines(path, content, is_json=is_json)
    prompts = [_prompt(f"{path}:{at}", entry) for at, entry in entries]
    if not prompts:
        raise InvalidInput(f"prompts: {path} is empty; write one prompt a line")
    return prompts


def write_texts(file: Path, number: int, tokens: int) -> None:
    """Write openings of library files as JSONL, as `read_prompts` reads it."""
    from headscope.probes.prompts.library import openings
    from headscope.probes.storage.dataset_file import refusing

    lines = [json.dumps({"text": text}) + "\n" for text in openings(number, tokens)]
    with refusing("--out", file):
        file.write_text("".join(lines), encoding="utf-8")


def _is_task(content: str) -> bool:
    """Return whether the first line that can be read is of a task; others are reported later."""
    for line in content.split("\n"):
        with suppress(json.JSONDecodeError, TypeError):
            return "clean" in json.loads(line)
    return False


def _lines(path: Path, content: str, *, is_json: bool) -> Iterator[tuple[int, Any]]:
    for at, line in enumerate(content.removesuffix("\n").split("\n") if content else (), 1):
        if not is_json:
            yield at, line
        elif line.strip():
            try:
                yield at, json.loads(line)
            except json.JSONDecodeError as error:
                raise InvalidInput(f"prompts: {path}:{at} is not JSON: {error.msg}") from error


def _json_list(path: Path, content: str) -> Iterator[tuple[int, Any]]:
    try:
        entries = json.loads(content)
    except json.JSONDecodeError as error:
        raise InvalidInput(f"prompts: {path}:{error.lineno} is not JSON: {error.msg}") from error
    if not isinstance(entries, list):
        raise InvalidInput(f'prompts: {path} holds no list; write [{{"text": "..."}}, ...]')
    yield from enumerate(entries, 1)


def _table_rows(path: Path, content: str, delimiter: str) -> Iterator[tuple[int, Any]]:
    rows = csv.DictReader(io.StringIO(content, newline=""), delimiter=delimiter)
    columns = [name for name in rows.fieldnames or () if name in ("text", "prompt")]
    if len(columns) != 1:
        raise InvalidInput(
            f"prompts: {path} has the columns {', '.join(rows.fieldnames or ())}; one of them must "
            "be text or prompt"
        )
    for row in rows:
        yield rows.line_num, row[columns[0]] or ""


def _prompt(where: str, entry: Any) -> Any:
    """Convert the entry of a line into a prompt for `capture`."""
    if isinstance(entry, Mapping):
        fields = [name for name in FIELDS if name in entry]
        if len(fields) != 1:
            raise InvalidInput(
                f"prompts: {where} has {' and '.join(fields) or 'none of them'}; an object needs "
                f"one of {', '.join(FIELDS)}"
            )
        if fields == ["source"]:
            return Pair(_text(where, entry, "source"), _text(where, entry, "target"))
        if fields[0] in ("messages", "input_ids"):
            if not isinstance(entry[fields[0]], Sequence) or not entry[fields[0]]:
                raise InvalidInput(f"prompts: {where}: {fields[0]} is no list")
            return entry[fields[0]]
        return _text(where, entry, fields[0])
    return _text(where, {"prompt": entry}, "prompt")


def _text(where: str, entry: Mapping[str, Any], name: str) -> str:
    if name not in entry:
        raise InvalidInput(f'prompts: {where} is not an object with {{"{name}": "..."}}')
    text = entry[name]
    if not isinstance(text, str):
        raise InvalidInput(f"prompts: {where}: {name} is a {type(text).__name__}, not a string")
    if not text.strip():
        raise InvalidInput(f"prompts: {where} is empty; write a {name} there or drop the line")
    return text

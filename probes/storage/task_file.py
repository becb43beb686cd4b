"""Files of tasks: the prompts of a run with their answers, so that analyses can ask them later."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headscope.kernels.errors import InvalidInput
from headscope.probes.prompts.task import Prompt, Question, Task
from headscope.probes.storage import dataset_file


def save(task: Task, path: Path) -> None:
    """Write a task as JSON."""
    dataset_file.write_text(path, json.dumps(asdict(task), ensure_ascii=False) + "\n")


def load(path: Path) -> Task:
    """Read a task that `save` wrote."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return Task(**{**stored, "prompts": tuple(map(_prompt, stored["prompts"]))})
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise InvalidInput(f"run: {path} cannot be read ({error}); capture again") from error


def _prompt(stored: dict[str, Any]) -> Prompt:
    questions = tuple(
        Question(**{name: _tuples(value) for name, value in question.items()})
        for question in stored["questions"]
    )
    roles = {name: _tuples(spans) for name, spans in stored["roles"].items()}
    clean, corrupted, changes = (
        _tuples(stored[name]) for name in ("clean", "corrupted", "changes")
    )
    return Prompt(clean, corrupted, questions, roles, changes)


def _tuples(value: Any) -> Any:
    """Make tuples of the lists that JSON has in their place."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value

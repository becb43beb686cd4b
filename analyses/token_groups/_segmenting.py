"""Segments: which group of tokens each token of a prompt belongs to."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.next_token_loss import tokens
from headscope.analyses.token_groups import _token_kinds
from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.probes.models.model import Model
from headscope.probes.prompts import tasks
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tokens import encode

WAYS = ("auto", "pieces", "parts", "kinds", "roles", "labels")
# A matrix of more segments than this has more cells than anyone reads.
MOST = 12
NONE = -1


@dataclass(frozen=True)
class Segments:
    """Named segments of all prompts, and what they are in words (``description``).

    ``numbers`` are, per prompt, the segment of every token, -1 for none; ``answers`` the token that
    answers a question at its very end, None where none is asked.
    """

    names: tuple[str, ...]
    numbers: tuple[NDArray[np.int64], ...]
    description: str
    answers: tuple[int | None, ...] = ()

    def positions(self, prompt: int, name: str) -> list[int]:
        """Return the positions of a segment in a prompt."""
        return np.flatnonzero(self.numbers[prompt] == self.names.index(name)).tolist()


def named(labels: Sequence[Sequence[str]], description: str, order: Sequence[str] = ()) -> Segments:
    """Number the labels of tokens, in the order given or of first mention; "" is no segment."""
    mentioned = dict.fromkeys(name for row in labels for name in row if name)
    names = tuple(name for name in order if name in mentioned) or tuple(mentioned)
    if not names:
        raise InvalidInput("labels: no token has one, so there are no segments")
    if len(names) > MOST:
        raise NotApplicable(
            f"by: {len(names)} segments ({', '.join(names[:3])}, …) are more than {MOST}; group "
            "the tokens into fewer"
        )
    number_of = {name: number for number, name in enumerate(names)}
    numbers = tuple(np.array([number_of.get(name, NONE) for name in row]) for row in labels)
    return Segments(names, numbers, description)


def segment(
    capture: xr.Dataset,
    model: Model,
    task: Any = None,
    *,
    by: str = "auto",
    pieces: int = 3,
    rare: int = 1,
    labels: str = "",
) -> Segments:
    """Group the tokens of every prompt of a capture.
    The options are those of `segments`; without the ``task`` whose roles are the segments, the one
    that the capture names is made again.
    """
    if by == "auto":
        by = _choose(capture, model, labels)
    if by == "labels":
        return _read(labels, capture["length"].values)
    if "pixels" in capture.coords:
        if by != "kinds":
            raise NotApplicable(
                f"by: images have no {by}; use kinds (patches, class tokens) or labels"
            )
        kinds = [_token_kinds.of_patches(row) for row in _token_texts(capture)]
        return named(kinds, "patches, and what the model puts before them")
    ids = tokens(capture)
    special = _special(model)
    if by == "kinds":
        kinds = _token_kinds.of_texts(ids, _token_texts(capture), special, rare)
        return named(kinds, _token_kinds.convention(rare, model.tokenizer), _token_kinds.KINDS)
    if by == "roles":
        return _roles(capture, model, task, ids)
    if by == "parts":
        return named([_parts(row, special) for row in ids], "texts between special tokens")
    if min(map(len, ids)) <= pieces:
        raise NotApplicable(
            f"pieces: a prompt of {min(map(len, ids))} tokens has no {pieces} pieces behind its "
            "first one; give longer prompts or fewer pieces"
        )
    sizes = [len(row) - 1 for row in ids]
    cut = [["first", *(f"piece {1 + at * pieces // size}" for at in range(size))] for size in sizes]
    return named(cut, f"the first token, then {pieces} pieces of equal length")


def _choose(capture: xr.Dataset, model: Model, labels: str) -> str:
    if labels:
        return "labels"
    if "pixels" in capture.coords:
        return "kinds"
    special = _special(model)
    several = any(len(set(_parts(ids, special)) - {"special"}) > 1 for ids in tokens(capture))
    return "parts" if several else "pieces"


def _special(model: Model) -> set[int]:
    return set(getattr(model.tokenizer, "all_special_ids", None) or [])


def _token_texts(capture: xr.Dataset) -> list[list[str]]:
    words = capture["token"].transpose("prompt", "query").values
    ends = capture["length"].values
    return [[str(word) for word in row[:end]] for row, end in zip(words, ends, strict=True)]


def _parts(ids: Sequence[int], special: set[int]) -> list[str]:
    """Number the runs of tokens that special tokens leave.

    >>> _parts([2, 7, 7, 3, 8, 3], {2, 3})
    ['special', 'part 1', 'part 1', 'special', 'part 2', 'special']
    """
    parts, part, before = [], 0, True
    for token in ids:
        inside = token not in special
        part += inside and before
        before = not inside
        parts.append(f"part {part}" if inside else "special")
    return parts


def _roles(capture: xr.Dataset, model: Model, task: Any, ids: list[list[int]]) -> Segments:
    attrs = capture.attrs
    if not isinstance(task, Task):
        if attrs.get("task", "") not in tasks.names():
            raise NotApplicable("by: roles are those of a task, and these prompts come from none")
        task = tasks.make(
            attrs["task"], model.tokenizer, len(ids), int(attrs["seed"]),
            register=attrs.get("register") or None,
        )  # fmt: skip
    encoded = encode(task, model.tokenizer, model.bos)
    if [list(row) for row in encoded.ids] != ids:
        raise NotApplicable(
            f"by: the captured prompts are not those of task {task.name}, so its roles do not fit; "
            "give the task itself as the prompts"
        )
    labelled: list[list[str]] = []
    answers: list[int | None] = []
    for row, roles, questions in zip(ids, encoded.roles, encoded.questions, strict=True):
        labels = ["first", *["elsewhere"] * (len(row) - 1)]
        # A token of several roles belongs to the narrowest.
        for name, positions in sorted(roles.items(), key=lambda role: -len(role[1])):
            for position in positions:
                labels[position] = name
        labelled.append(labels)
        at_end = [question.answer_ids[0] for question in questions if question.at == len(row) - 1]
        answers.append(at_end[0] if at_end else None)
    segments = named(labelled, f"roles of task {task.name}, the narrowest where several meet")
    return replace(segments, answers=tuple(answers))


def _read(path: str, lengths: NDArray[np.int64]) -> Segments:
    if not path:
        raise InvalidInput("labels: none given; give a JSON file with a name for each token")
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"labels: {path} cannot be read as JSON ({error})") from error
    if not isinstance(rows, list) or len(rows) != len(lengths):
        raise InvalidInput(f"labels: {path} must hold one list for each of {len(lengths)} prompts")
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True), start=1):
        if not isinstance(row, list) or len(row) != length:
            raise InvalidInput(
                f"labels: prompt {number} has {length} tokens; give a list of as many names"
            )
    return named([[str(name) for name in row] for row in rows], f"labels of {Path(path).name}")

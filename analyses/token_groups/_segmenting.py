"""Segments: which group of tokens each token of a prompt belongs to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.next_token_loss import tokens
from headscope.analyses.token_groups import _token_kinds
from headscope.kernels.errors import InvalidInput, NotApplicable

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

WAYS = ("auto", "pieces", "parts", "kinds", "roles", "labels")
# A matrix of more segments than this has more cells than anyone reads.
MOST = 12
NONE = -1


@dataclass(frozen=True)
class Segments:
    """Named segments of all prompts; a token belongs to one of them or to none.

    Attributes
    ----------
    names
        Names of the segments.
    numbers
        Per prompt, the segment of every token; -1 is none.
    said
        What the segments are, in words.
    answers
        Per prompt, the token that answers a question at its very end; None where none is asked.
    """

    names: tuple[str, ...]
    numbers: tuple[NDArray[np.int64], ...]
    said: str
    answers: tuple[int | None, ...] = ()

    def places(self, prompt: int, name: str) -> list[int]:
        """Return where a segment stands in a prompt."""
        return np.flatnonzero(self.numbers[prompt] == self.names.index(name)).tolist()


def named(labels: Sequence[Sequence[str]], said: str, order: Sequence[str] = ()) -> Segments:
    """Number the labels of tokens, in the order given or of first mention; "" is no segment.

    Raises
    ------
    HeadscopeError
        When there is no segment, or more than a matrix can show.
    """
    found = dict.fromkeys(one for each in labels for one in each if one)
    names = tuple(one for one in order if one in found) or tuple(found)
    if not names:
        raise InvalidInput("labels: no token has one, so there are no segments")
    if len(names) > MOST:
        raise NotApplicable(
            f"by: {len(names)} segments ({', '.join(names[:3])}, …) are more than {MOST}; group "
            "the tokens into fewer"
        )
    place = {name: number for number, name in enumerate(names)}
    numbers = tuple(np.array([place.get(one, NONE) for one in each]) for each in labels)
    return Segments(names, numbers, said)


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

    Parameters
    ----------
    capture
        The captured prompts.
    model
        Model that was captured.
    task
        Task that the prompts come from, where ``by`` is ``roles``; without it, the one that the
        capture names is made again.
    by
        ``pieces``: the first token, then pieces of equal length. ``parts``: what stands between
        special tokens, such as the two texts of an encoder. ``kinds``: kinds of tokens, or patches
        and class tokens. ``roles``: the roles of a task. ``labels``: a file. ``auto``: a file where
        one is given; else kinds for images; parts where special tokens part the texts; pieces.
    pieces
        Number of pieces.
    rare
        A word is rare that occurs at most this often in all prompts together.
    labels
        JSON file with a list for each prompt, of a name for each of its tokens; "" is no segment.

    Raises
    ------
    NotApplicable
        For a grouping that these prompts do not have, and a file that does not fit them.
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
        kinds = [_token_kinds.of_patches(row) for row in _words(capture)]
        return named(kinds, "patches, and what the model puts before them")
    ids = tokens(capture)
    special = _special(model)
    if by == "kinds":
        kinds = _token_kinds.of_texts(ids, _words(capture), special, rare)
        return named(kinds, _token_kinds.stated(rare, model.tokenizer), _token_kinds.KINDS)
    if by == "roles":
        return _roles(capture, model, task, ids)
    if by == "parts":
        return named([_parts(one, special) for one in ids], "texts between special tokens")
    if min(map(len, ids)) <= pieces:
        raise NotApplicable(
            f"pieces: a prompt of {min(map(len, ids))} tokens has no {pieces} pieces behind its "
            "first one; give longer prompts or fewer pieces"
        )
    cut = [["first", *(f"piece {1 + at * pieces // (len(one) - 1)}" for at in range(len(one) - 1))]
           for one in ids]  # fmt: skip
    return named(cut, f"the first token, then {pieces} pieces of equal length")


def _choose(capture: xr.Dataset, model: Model, labels: str) -> str:
    if labels:
        return "labels"
    if "pixels" in capture.coords:
        return "kinds"
    special = _special(model)
    several = any(len(set(_parts(one, special)) - {"special"}) > 1 for one in tokens(capture))
    return "parts" if several else "pieces"


def _special(model: Model) -> set[int]:
    return set(getattr(model.tokenizer, "all_special_ids", None) or [])


def _words(capture: xr.Dataset) -> list[list[str]]:
    words = capture["token"].transpose("prompt", "query").values
    ends = capture["length"].values
    return [[str(one) for one in row[:end]] for row, end in zip(words, ends, strict=True)]


def _parts(ids: Sequence[int], special: set[int]) -> list[str]:
    """Number the runs of tokens that special tokens leave.

    >>> _parts([2, 7, 7, 3, 8, 3], {2, 3})
    ['special', 'part 1', 'part 1', 'special', 'part 2', 'special']
    """
    found, part, before = [], 0, True
    for one in ids:
        inside = one not in special
        part += inside and before
        before = not inside
        found.append(f"part {part}" if inside else "special")
    return found


def _roles(capture: xr.Dataset, model: Model, task: Any, ids: list[list[int]]) -> Segments:
    from headscope.probes.prompts import tasks
    from headscope.probes.prompts.task import Task
    from headscope.probes.prompts.tokens import encode

    attrs = capture.attrs
    if not isinstance(task, Task):
        if attrs.get("task", "") not in tasks.names():
            raise NotApplicable("by: roles are those of a task, and these prompts come from none")
        task = tasks.make(attrs["task"], model.tokenizer, n=len(ids), seed=int(attrs["seed"]))
    encoded = encode(task, model.tokenizer)
    if [list(one) for one in encoded.ids] != ids:
        raise NotApplicable(
            f"by: the captured prompts are not those of task {task.name}, so its roles do not fit; "
            "give the task itself as the prompts"
        )
    labelled: list[list[str]] = []
    answers: list[int | None] = []
    for one, roles in zip(ids, encoded.roles, strict=True):
        row = ["first", *["elsewhere"] * (len(one) - 1)]
        # A token of several roles belongs to the narrowest.
        for name, places in sorted(roles.items(), key=lambda each: -len(each[1])):
            for place in places:
                row[place] = name
        labelled.append(row)
    for one, questions in zip(ids, encoded.questions, strict=True):
        last = [each.answer_ids[0] for each in questions if each.at == len(one) - 1]
        answers.append(last[0] if last else None)
    made = named(labelled, f"roles of task {task.name}, the narrowest where several meet")
    return replace(made, answers=tuple(answers))


def _read(path: str, lengths: NDArray[np.int64]) -> Segments:
    if not path:
        raise InvalidInput("labels: none given; give a JSON file with a name for each token")
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"labels: {path} cannot be read as JSON ({error})") from error
    if not isinstance(given, list) or len(given) != len(lengths):
        raise InvalidInput(f"labels: {path} must hold one list for each of {len(lengths)} prompts")
    for row, (one, length) in enumerate(zip(given, lengths, strict=True)):
        if not isinstance(one, list) or len(one) != length:
            raise InvalidInput(
                f"labels: prompt {row + 1} has {length} tokens; give a list of as many names"
            )
    return named([[str(name) for name in one] for one in given], f"labels of {Path(path).name}")

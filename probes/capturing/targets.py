"""Target keys of ``target_mass`` for every query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headscope.kernels.errors import InvalidInput, NotApplicable

if TYPE_CHECKING:
    from headscope.probes.prompts.prompt_batch import Prompts

    Keys = list[list[int]]
    TargetsLike = str | Sequence[str] | Mapping[str, Sequence[Sequence[Sequence[int]]]]

NONE = -1
OCCURRENCES = 8


def rules() -> list[str]:
    """List the names of the rules that find targets."""
    return ["duplicate", "induction", "evidence"]


def find(
    rule: str, ids: Sequence[int], questions: Sequence[Any] = (), occurrences: int = OCCURRENCES
) -> Keys:
    """Find the target keys of every query of one prompt.

    Parameters
    ----------
    rule
        ``duplicate``: the latest earlier occurrences of the query's own token.
        ``induction``: the keys right after those, where copying would look (Olsson et al. 2022);
        never the query itself.
        ``evidence``: at the queries that a task asks at, the tokens that hold the answer.
    ids, questions
        Token ids of the prompt, and its questions in token positions, which ``evidence`` needs.
    occurrences
        How many earlier occurrences count, latest first.

    Returns
    -------
    One list of keys for every query, empty where the rule names none.

    Examples
    --------
    >>> find("duplicate", [5, 6, 5])
    [[], [], [0]]
    >>> find("induction", [5, 6, 5])
    [[], [], [1]]
    """
    if rule not in rules():
        raise InvalidInput(f"targets: no rule {rule!r}; choose from {', '.join(rules())}")
    if rule == "evidence":
        return _evidence(ids, questions)
    step = 1 if rule == "induction" else 0
    earlier: dict[int, list[int]] = {}
    keys: Keys = []
    for query, token in enumerate(ids):
        found_keys = [at + step for at in reversed(earlier.get(token, ())) if at + step < query]
        keys.append(sorted(found_keys[:occurrences]))
        earlier.setdefault(token, []).append(query)
    return keys


def _evidence(ids: Sequence[int], questions: Sequence[Any]) -> Keys:
    if not any(question.evidence for question in questions):
        raise NotApplicable(
            "targets: the rule 'evidence' needs a task whose questions name evidence, the words "
            'that decide the answer ("evidence" in a JSONL file)'
        )
    keys: Keys = [[] for _ in ids]
    for question in questions:
        evidence = {*keys[question.at], *map(int, question.evidence)}
        keys[question.at] = sorted(evidence)
    return keys


def collect(targets: TargetsLike | None, prompts: Prompts) -> tuple[list[str], list[list[Keys]]]:
    """Find the targets of all prompts: their names, and per prompt and target the keys.

    ``None`` stands for every rule that applies; a mapping gives the keys outright, by name and
    then per prompt and query.
    """
    if prompts.crossed and not isinstance(targets, Mapping):
        raise NotApplicable(
            "targets: rules compare tokens of one text; for cross-attention give a mapping from a "
            "name to keys per prompt and query"
        )
    questions = (
        prompts.encoded.questions if prompts.encoded is not None else [()] * len(prompts.ids)
    )
    if isinstance(targets, Mapping):
        for name, listed in targets.items():
            _check_keys(name, listed, prompts)
        keys = [
            [[sorted(map(int, query)) for query in listed[row]] for listed in targets.values()]
            for row in range(len(prompts.ids))
        ]
        return list(targets), keys
    if targets is None:
        named = any(question.evidence for of_prompt in questions for question in of_prompt)
        names = [rule for rule in rules() if rule != "evidence" or named]
    else:
        names = [targets] if isinstance(targets, str) else list(targets)
    keys = [
        [find(name, ids, of_prompt) for name in names]
        for ids, of_prompt in zip(prompts.ids, questions, strict=True)
    ]
    return names, keys


def _check_keys(name: str, listed: Sequence[Sequence[Sequence[int]]], prompts: Prompts) -> None:
    lengths = [len(queries) for queries in listed]
    if lengths != [len(ids) for ids in prompts.ids]:
        raise InvalidInput(
            f"targets: {name!r} must hold, per prompt, one list of keys for every query"
        )
    for row, queries in enumerate(listed):
        for query, keys in enumerate(queries):
            if any(not 0 <= key < len(prompts.keys[row]) for key in keys):
                raise InvalidInput(
                    f"targets: {name!r} names a key outside prompt {row + 1} at query {query}"
                )


def pack(keys: Sequence[Sequence[Keys]]) -> npt.NDArray[np.int64]:
    """Pack the keys of prompts: dims batch, target, query, occurrence, -1 for none.

    >>> pack([[[[], [0]]]]).tolist()
    [[[[-1], [0]]]]
    """
    width = max((len(query) for row in keys for target in row for query in target), default=0)
    longest = max(len(target) for row in keys for target in row)
    shape = (len(keys), len(keys[0]), longest, max(width, 1))
    packed = np.full(shape, NONE, dtype=np.int64)
    for row, targets in enumerate(keys):
        for target, queries in enumerate(targets):
            for query, found_keys in enumerate(queries):
                packed[row, target, query, : len(found_keys)] = found_keys
    return packed

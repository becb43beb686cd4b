"""Token spans of ``span_mass``: named sets of positions in every prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from headscope.kernels.errors import InvalidInput

if TYPE_CHECKING:
    from headscope.probes.prompts.prompt_batch import Prompts

    SpansLike = str | Sequence[str] | Mapping[str, Sequence[Sequence[int]]]

NONE = -1


@dataclass(frozen=True, eq=False)
class Spans:
    """Named spans of all prompts; a token may lie in several.

    The kernels know one number a key, so every combination of spans that a token lies in has its
    own number, and the masses of the combinations are added up afterwards.

    Attributes
    ----------
    names
        Names of the spans.
    numbers
        Per prompt, the combination of every key, -1 for none.
    members
        Which spans belong to each combination, dims combination, span.
    """

    names: list[str]
    numbers: list[npt.NDArray[np.int64]]
    members: npt.NDArray[np.bool_]

    def pack(self, rows: Sequence[int]) -> Tensor:
        """Stack the numbers of some prompts: dims batch, key, -1 beyond the end of one."""
        numbers = [torch.from_numpy(self.numbers[row]) for row in rows]
        return pad_sequence(numbers, batch_first=True, padding_value=NONE)

    def add(self, rows: Sequence[int], mass: Tensor) -> Tensor:
        """Add the masses of combinations to masses of spans, NaN where a prompt lacks a span."""
        used = self.members[: mass.shape[-1]]
        total = mass.nan_to_num() @ torch.from_numpy(used).to(mass)
        for at, row in enumerate(rows):
            used_numbers = np.unique(self.numbers[row])
            absent = ~self.members[used_numbers[used_numbers != NONE]].any(axis=0)
            total[at][..., torch.from_numpy(absent)] = float("nan")
        return total


def collect(spans: SpansLike | None, prompts: Prompts) -> Spans:
    """Find the spans of all prompts.

    They are given as token positions by name and then per prompt, or as names of roles of the task;
    None stands for every role of the task.

    >>> from headscope.probes.prompts.prompt_batch import Prompts
    >>> spans = collect({"start": [[0, 1]], "first": [[0]]}, Prompts(ids=((5, 6, 7),)))
    >>> spans.numbers[0].tolist(), spans.members.astype(int).tolist()
    ([0, 1, -1], [[1, 1], [1, 0]])
    """
    if isinstance(spans, Mapping):
        names = list(spans)
        by_prompt = [_of_prompts(name, spans[name], prompts) for name in names]
    else:
        names, by_prompt = _of_task(spans, prompts)
    if not names:
        raise InvalidInput("spans: there are none; give at least one name")
    combinations: dict[tuple[int, ...], int] = {}
    numbers = []
    for row, ids in enumerate(prompts.keys):
        inside: list[list[int]] = [[] for _ in ids]
        for span, positions in enumerate(by_prompt):
            for position in positions[row]:
                inside[position].append(span)
        of_keys = [
            combinations.setdefault(tuple(numbered), len(combinations)) if numbered else NONE
            for numbered in inside
        ]
        numbers.append(np.array(of_keys, dtype=np.int64))
    members = np.zeros((len(combinations), len(names)), dtype=bool)
    for combination, number in combinations.items():
        members[number, list(combination)] = True
    return Spans(names, numbers, members)


def _of_prompts(
    name: str, listed: Sequence[Iterable[int]], prompts: Prompts
) -> list[tuple[int, ...]]:
    if len(listed) != len(prompts.keys):
        raise InvalidInput(f"spans: {name!r} must hold one list of positions for every prompt")
    spans = [tuple(sorted({int(position) for position in positions})) for positions in listed]
    for row, (positions, ids) in enumerate(zip(spans, prompts.keys, strict=True)):
        if positions and not 0 <= positions[0] <= positions[-1] < len(ids):
            wrong = positions[0] if positions[0] < 0 else positions[-1]
            raise InvalidInput(f"spans: {name!r} names position {wrong}, outside prompt {row + 1}")
    return spans


def _of_task(
    roles: str | Sequence[str] | None, prompts: Prompts
) -> tuple[list[str], list[list[tuple[int, ...]]]]:
    if prompts.encoded is None:
        raise InvalidInput(
            "spans: span_mass needs them; give a mapping from a name to positions per prompt, "
            "or a task with roles"
        )
    tokens = prompts.encoded.roles
    all_roles = list(dict.fromkeys(name for by_role in tokens for name in by_role))
    names = [roles] if isinstance(roles, str) else all_roles if roles is None else list(roles)
    for name in names:
        if name not in all_roles:
            raise InvalidInput(
                f"spans: no role {name!r}; choose from {', '.join(all_roles) or 'none'}"
            )
    return names, [
        [tuple(sorted(set(by_role.get(name, ())))) for by_role in tokens] for name in names
    ]

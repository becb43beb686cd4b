"""Conditions: two sets of prompts, what every head does where they ask, and what ablation costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses.conditions import _rare_tokens
from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

Array = NDArray[np.float64]
Head = tuple[int, int]

CORRUPTED = "corrupted"
# By name: the statistic of the capture, its unit, and what it is.
STATISTICS = {
    "evidence": ("target_mass", "share", "weight on the tokens that hold the answer"),
    "entropy": ("entropy", "nats", "entropy of the row"),
    "first": ("first_mass", "share", "weight on the first token"),
    "previous": ("offset_mass", "share", "weight on the token before"),
    "largest": ("max_weight", "share", "largest weight"),
    "distance": ("distance", "tokens", "mean distance"),
    "rare": ("span_mass", "share", "weight on the rarest tokens"),
}


@dataclass(frozen=True)
class Condition:
    """Prompts, where each asks, and the tokens that hold its answers.

    Attributes
    ----------
    name
        What the prompts are.
    ids
        Token ids, one tuple a prompt.
    asked
        Positions that are read, per prompt.
    evidence
        Per prompt and asked position, the keys that hold the answer.
    """

    name: str
    ids: tuple[tuple[int, ...], ...]
    asked: tuple[tuple[int, ...], ...]
    evidence: tuple[tuple[tuple[int, ...], ...], ...]


def pair(model: Model, task: Task, other: str) -> tuple[Condition, Condition]:
    """Return condition A, the task, and B: its corrupted twins, or as many prompts of a task."""
    from headscope.probes.prompts import tasks
    from headscope.probes.prompts.reading import read

    encoded = read(model, task).encoded
    assert encoded is not None
    first = _of(task.name, encoded.ids, encoded.questions)
    if other == CORRUPTED:
        return first, _of(f"{task.name}, corrupted", encoded.corrupted_ids, encoded.questions)
    made = tasks.make(other, tokenizer=model.tokenizer, n=len(task), seed=task.seed)
    second = read(model, made).encoded
    assert second is not None
    return first, _of(made.name, second.ids, second.questions)


def _of(name: str, ids: Sequence[Any], questions: Sequence[Any]) -> Condition:
    return Condition(
        name,
        tuple(tuple(map(int, one)) for one in ids),
        tuple(tuple(each.at for each in asked) for asked in questions),
        tuple(tuple(tuple(map(int, each.evidence)) for each in asked) for asked in questions),
    )


def read_heads(
    model: Model, condition: Condition, names: Sequence[str], rare: Sequence[Sequence[int]]
) -> tuple[dict[str, Array], xr.Dataset]:
    """Return statistics of every head where the prompts ask, by name (prompt, layer, head).

    The mean over the asked positions; from one pass, at any length. Also the capture.

    Raises
    ------
    NotApplicable
        For ``evidence`` where the questions name none.
    """
    from headscope.probes import capture

    if "evidence" in names and not any(keys for each in condition.evidence for keys in each):
        raise NotApplicable(
            f"statistics: the questions of {condition.name} name no evidence; leave it out"
        )
    keys = []
    for ids, asked, evidence in zip(
        condition.ids, condition.asked, condition.evidence, strict=True
    ):
        wanted: list[list[int]] = [[] for _ in ids]
        for at, places in zip(asked, evidence, strict=True):
            wanted[at] = sorted({*wanted[at], *places})
        keys.append(wanted)
    found = capture(
        model,
        [list(one) for one in condition.ids],
        stats=tuple(dict.fromkeys(STATISTICS[name][0] for name in names)),
        offsets=(1,),
        targets={"evidence": keys},
        spans={"rare": [list(one) for one in rare]},
    )
    return {name: _where_asked(found, name, condition) for name in names}, found


def _where_asked(found: xr.Dataset, name: str, condition: Condition) -> Array:
    picked: dict[str, dict[str, Any]] = {
        "evidence": {"target": "evidence"}, "previous": {"offset": 1}, "rare": {"span": "rare"},
    }  # fmt: skip
    values = found[STATISTICS[name][0]].sel(picked.get(name, {}))
    values = values.transpose("prompt", "query", "layer", "head")
    rows = [
        values[row, list(dict.fromkeys(asked))].mean("query", skipna=True).values
        for row, asked in enumerate(condition.asked)
    ]
    return np.stack(rows).astype(np.float64)


def expected_rare(condition: Condition, rare: Sequence[Sequence[int]], causal: bool) -> Array:
    """Return what a uniform head would give the rare tokens where it is asked (prompt,)."""
    return np.array([
        _rare_tokens.expected(len(ids), places, list(dict.fromkeys(asked)), causal).mean()
        for ids, places, asked in zip(condition.ids, rare, condition.asked, strict=True)
    ])  # fmt: skip


def lost(
    model: Model,
    condition: Condition,
    groups: Sequence[Sequence[Head]],
    checked: int,
    progress: Any = None,
) -> Array:
    """Return what ablating groups of heads costs the model's own answers (prompt, group).

    The fall, in nats, of the log-probability of the token that the intact model finds most likely
    where it is asked, averaged over the questions of a prompt: defined with and without a right
    answer, and the same in both conditions.
    """
    import torch

    from headscope.probes.attention.forward import logits
    from headscope.probes.interventions import Ablate

    found = []
    count = min(checked, len(condition.ids))
    for row in range(count):
        given, asked = torch.tensor([condition.ids[row]]), list(condition.asked[row])
        with torch.no_grad():
            intact = logits(model, given)[0, asked].double().log_softmax(-1)
            own = intact.argmax(-1, keepdim=True)
            values = []
            for heads in groups:
                edited = logits(model, given, (Ablate(heads=tuple(heads)),))[0, asked]
                chance = edited.double().log_softmax(-1).gather(1, own)
                values.append(float((intact.gather(1, own) - chance).mean()))
        found.append(values)
        if progress is not None:
            progress(row + 1, count)
    return np.asarray(found)

"""Conditions: two sets of prompts, what every head does where they ask, and what ablation costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from headscope.analyses._interventions.ablation import Array, encode_task
from headscope.analyses._interventions.head_sets import Head
from headscope.analyses._measurements import without_first
from headscope.analyses._stats.length_trend import mean, per_query
from headscope.analyses.conditions import _rare_tokens
from headscope.kernels.errors import NotApplicable
from headscope.probes.attention.forward import logits
from headscope.probes.capturing.capture import capture
from headscope.probes.interventions import Ablate
from headscope.probes.models.model import Model
from headscope.probes.prompts import tasks
from headscope.probes.prompts.task import Task

CORRUPTED = "corrupted"
# By name: the statistic of the capture, its unit, and what it is.
STATISTICS = {
    "evidence": ("target_mass", "share", "weight on the tokens that hold the answer"),
    "entropy": ("entropy", "nats", "entropy of the row"),
    "first": ("first_mass", "share", "weight on the first token"),
    "previous": ("offset_mass", "share", "weight on the token before"),
    "largest": ("max_weight", "share", "largest weight"),
    "distance": ("distance", "tokens", "mean distance"),
    **{
        f"{name}{without_first.SUFFIX}": (name, units, f"{what}{without_first.TITLE}")
        for name, units, what in (
            ("entropy", "nats", "entropy of the row"),
            ("distance", "tokens", "mean distance"),
        )
    },
    "rare": ("span_mass", "share", "weight on the rarest tokens"),
}

# Which entry of a statistic it is, where there are several.
SELECTED: dict[str, dict[str, Any]] = {
    "evidence": {"target": "evidence"}, "previous": {"offset": 1}, "rare": {"span": "rare"},
}  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """Prompts, the positions that are read, and the keys that hold the answers.

    ``queries`` has the positions per prompt, ``evidence`` the keys per prompt and query.
    """

    name: str
    ids: tuple[tuple[int, ...], ...]
    queries: tuple[tuple[int, ...], ...]
    evidence: tuple[tuple[tuple[int, ...], ...], ...]


def pair(model: Model, task: Task, other: str) -> tuple[Condition, Condition]:
    """Return condition A, the task, and B: its counterfactuals, or as many prompts of a task."""
    encoded = encode_task(model, task)
    first = _of(task.name, encoded.ids, encoded.questions)
    if other == CORRUPTED:
        return first, _of(f"{task.name}, corrupted", encoded.corrupted_ids, encoded.questions)
    second_task = tasks.make(other, tokenizer=model.tokenizer, n=len(task), seed=task.seed)
    second = encode_task(model, second_task)
    return first, _of(second_task.name, second.ids, second.questions)


def _of(name: str, ids: Sequence[Any], questions: Sequence[Any]) -> Condition:
    return Condition(
        name,
        tuple(tuple(map(int, prompt)) for prompt in ids),
        tuple(tuple(question.at for question in prompt) for prompt in questions),
        tuple(
            tuple(tuple(map(int, question.evidence)) for question in prompt) for prompt in questions
        ),
    )


def read_heads(
    model: Model, condition: Condition, names: Sequence[str], rare: Sequence[Sequence[int]]
) -> tuple[dict[str, Array], xr.Dataset]:
    """Return statistics of every head where the prompts ask, by name (prompt, layer, head).

    The mean over the queries of a prompt; from one pass, at any length. Also the capture.
    """
    if "evidence" in names and not any(keys for prompt in condition.evidence for keys in prompt):
        raise NotApplicable(
            f"statistics: the questions of {condition.name} name no evidence; leave it out"
        )
    targets = []
    for ids, queries, evidence in zip(
        condition.ids, condition.queries, condition.evidence, strict=True
    ):
        keys: list[list[int]] = [[] for _ in ids]
        for query, evidence_keys in zip(queries, evidence, strict=True):
            keys[query] = sorted({*keys[query], *evidence_keys})
        targets.append(keys)
    also = ("first_mass",) if any(name.endswith(without_first.SUFFIX) for name in names) else ()
    statistics = capture(
        model,
        [list(ids) for ids in condition.ids],
        stats=tuple(dict.fromkeys((*(STATISTICS[name][0] for name in names), *also))),
        offsets=(1,),
        targets={"evidence": targets},
        spans={"rare": [list(positions) for positions in rare]},
    )
    return {name: _at_queries(statistics, name, condition) for name in names}, statistics


def _at_queries(statistics: xr.Dataset, name: str, condition: Condition) -> Array:
    measured = STATISTICS[name][0]
    values = per_query(statistics.sel(SELECTED.get(name, {})), measured)
    if name.endswith(without_first.SUFFIX):
        values = getattr(without_first, measured)(values, without_first.mass(statistics))
    rows = [
        mean(values[row][..., list(dict.fromkeys(queries))])
        for row, queries in enumerate(condition.queries)
    ]
    return np.stack(rows)


def expected_rare(condition: Condition, rare: Sequence[Sequence[int]], causal: bool) -> Array:
    """Return what a uniform head would give the rare tokens at the queries (prompt,)."""
    prompts = zip(condition.ids, rare, condition.queries, strict=True)
    return np.array(
        [
            _rare_tokens.expected(len(ids), positions, list(dict.fromkeys(queries)), causal).mean()
            for ids, positions, queries in prompts
        ]
    )


def lost(
    model: Model, condition: Condition, groups: Sequence[Sequence[Head]], checked: int
) -> Array:
    """Return what ablating groups of heads costs the model's own answers (prompt, group).

    The fall, in nats, of the log-probability of the token that the unablated model finds most
    likely at the queries, averaged over those of a prompt: defined with and without a right
    answer, and the same in both conditions.
    """
    losses: list[list[float]] = []
    count = min(checked, len(condition.ids))
    with torch.no_grad():
        for row in range(count):
            ids, queries = torch.tensor([condition.ids[row]]), list(condition.queries[row])
            clean = logits(model, ids)[0, queries].double().log_softmax(-1)
            own = clean.argmax(-1, keepdim=True)
            losses.append([])
            for heads in groups:
                ablated = logits(model, ids, (Ablate(tuple(heads)),))[0, queries]
                chance = ablated.double().log_softmax(-1).gather(1, own)
                losses[-1].append(float((clean.gather(1, own) - chance).mean()))
    return np.asarray(losses)

"""Tuning: a few heads learn a weight or an offset for a task; selected heads against others.

First every head learns a factor for its output that makes wanted words likely (the model itself
stays as it is); the heads whose factor moves furthest from 1 are the task's. Then those few heads
alone learn, once more their factors, or a vector added to their output at every position. The same
is done with as many heads that another task has selected, and with random ones: where the task's
own heads do no better, the selection says nothing about where the task is done. Learned on every
other prompt, measured on the rest. By default the wanted words are the task's wrong answers, since
a model that does a task already has nothing to learn.

Source: Yin et al., LoFiT: Localized Fine-tuning on LLM Representations.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.ablation import encode_task, evaluate
from headscope.analyses._interventions.causal_check import random_sets
from headscope.analyses._runtime.options import AtLeast, OneOf
from headscope.analyses._runtime.results import ZERO_TO_ONE, Results, heads, label, require, top
from headscope.analyses._runtime.verdict import State, Verdict
from headscope.analyses.head_importance import _tuned
from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.kernels.formatting import amount
from headscope.probes.interventions import Edit, Gate, Offset
from headscope.probes.models.model import Model
from headscope.probes.prompts import tasks
from headscope.probes.prompts.task import Task

NEEDS = ()
KEEP = ("z",)
TASK = "ioi"
PROMPTS = 32
SUPPORTS = {"hybrid"}
QUICK = {"steps": 2, "count": 1, "other": "thread"}

SOURCE = "LoFiT (Yin et al. 2024)"
GOALS = ("answers", "wrong")
LEARNED = ("weights", "offsets")
WHOSE = ("own heads", "another task's heads", "random heads")
ADVANTAGE = "Own heads − other heads, log-probability"


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    goal: Annotated[str, OneOf(GOALS)] = "wrong",
    other: str = "greater_than",
    count: Annotated[int, AtLeast(1)] = 4,
    steps: Annotated[int, AtLeast(1)] = 15,
    rate: Annotated[float, AtLeast(1e-6)] = 0.15,
    penalty: Annotated[float, AtLeast(0)] = 1.0,
    seed: int = 0,
) -> xr.Dataset:
    """Learn weights and offsets of a few heads for a task, and compare selections of heads.

    Parameters
    ----------
    capture, model, task
        Capture of a task of four prompts or more, with the kept ``z``, which says how large outputs
        are: every other prompt is learned from, the rest are measured.
    goal
        Words that are to become likely: ``wrong`` (the task's wrong answers) or ``answers``.
    other
        Built-in task that selects the heads to compare with, with the same goal.
    count
        Number of heads that learn.
    steps, rate
        Number and size of the steps of Adam; an offset's step is in units of the head's output.
    penalty
        Nats that a mean departure of 1 from the factor 1 costs while heads are selected.
    seed
        Seed of the other task, the random heads and the bootstrap over prompts.

    Returns
    -------
    Dataset with ``weight`` (layer, head; the learned factor, 1 for a head that the goal leaves
    alone), ``offset`` (layer, head; size of the learned offset over that of the head's output, 0
    for heads that do not learn), ``before`` (log-probability of the wanted words), ``tuned``
    (learned, whose) and ``tuned_accuracy`` (learned, whose; share of questions where a wanted word
    is the most likely one) and ``advantage`` (learned, against; own heads − the others, the same
    prompts), all on prompts that nothing was learned from and with 95 % intervals over them, but
    for ``weight`` and ``offset``, which are learned once.
    """
    require(capture, KEEP, "tuning")
    model.check_predicts()
    if len(task) < 4:
        raise NotApplicable(
            f"task: {len(task)} prompts; give four or more to learn from and to measure"
        )
    if other == task.name:
        raise InvalidInput(f"other: {other} is the task itself; name another one")
    pool = heads(capture)
    if 3 * count > len(pool):
        raise NotApplicable(f"count: {count} of {len(pool)} heads; take {len(pool) // 3} or fewer")
    aimed = _tuned.aimed(task, goal)
    encoded = encode_task(model, aimed)
    learned_from, unseen = (encoded.part(range(start, len(task), 2)) for start in (0, 1))
    other_task = tasks.make(other, tokenizer=model.tokenizer, n=len(learned_from), seed=seed)
    rival = encode_task(model, _tuned.aimed(other_task, goal))
    training: dict[str, Any] = {"steps": steps, "rate": rate}
    chance = np.empty((len(unseen), len(LEARNED), len(WHOSE)))
    right, norm = np.empty_like(chance), np.zeros((model.layers, model.heads))
    sizes = _tuned.output_sizes(capture)
    weight = _tuned.head_weights(model, learned_from, penalty=penalty, **training)
    other_weight = _tuned.head_weights(model, rival, penalty=penalty, **training)
    own_heads, other_heads = (top(np.abs(factor - 1), count) for factor in (weight, other_weight))
    rest = [head for head in pool if head not in {*own_heads, *other_heads}]
    sets = dict(
        zip(WHOSE, (own_heads, other_heads, random_sets(rest, count, 1, seed)[0]), strict=True)
    )
    for column, (whose, chosen) in enumerate(sets.items()):
        factor = _tuned.head_weights(model, learned_from, heads=chosen, **training)
        vector = _tuned.offsets(model, learned_from, chosen, sizes, **training)
        if whose == WHOSE[0]:
            norm = _relative(vector.numpy(), sizes.numpy())
        # 1 in layers without an attention map, which have no factor.
        gate = Gate(torch.from_numpy(np.nan_to_num(factor, nan=1.0).astype(np.float32)))
        edits: tuple[Edit, ...] = (gate, Offset(tuple(chosen), vector))
        for row, edit in enumerate(edits):
            chance[:, row, column] = evaluate(model, unseen, (edit,), "log_probability")
            right[:, row, column] = evaluate(model, unseen, (edit,), "accuracy")

    aim = "wrong answers" if goal == "wrong" else "answers"
    convention = (
        f"{aim} of {task.name}, learned from {len(learned_from)} prompts in {steps} steps, "
        f"measured on {len(unseen)} others; other task: {other}"
    )
    dims = ("learned", "whose")
    before = evaluate(model, unseen, (), "log_probability")
    results = Results(capture, seed=seed, source=SOURCE, convention=convention)
    results.add_all(
        ("weight", ("layer", "head"), weight, f"Weight learned for the {aim} of {task.name}",
         ("factor", "sequential"), f"1: left alone; penalty {penalty:g}; {convention}"),
        ("offset", ("layer", "head"), norm, "Learned offset",
         ("share of the head's output", "sequential", 0),
         f"norm over that of a typical output; {convention}"),
    )  # fmt: skip
    nats, share = ("nats", "diverging"), ("share of answers", *ZERO_TO_ONE)
    advantage = chance[:, :, :1] - chance[:, :, 1:]
    results.add_means(
        ("before", (), before, f"Log-probability of the {aim} before", nats),
        ("tuned", dims, chance, f"Log-probability of the {aim}, heads tuned", nats),
        ("tuned_accuracy", dims, right, f"{aim.capitalize()} given, heads tuned", share),
        ("advantage", ("learned", "against"), advantage, ADVANTAGE, nats),
        evidence="causal",
    )
    named = {whose: [label(head) for head in chosen] for whose, chosen in sets.items()}
    return results.dataset(
        {"learned": list(LEARNED), "whose": list(WHOSE), "against": list(WHOSE[1:])},
        _verdict(results, named, other),
        tuned_heads=named,
    )


def _relative(vector: NDArray[Any], sizes: NDArray[Any]) -> NDArray[np.float64]:
    """Return the root mean square of each head's vector over that of its output; 0 where none."""
    root = np.sqrt((vector.astype(np.float64) ** 2).mean(-1))
    return np.asarray(np.where(sizes > 0, root / np.where(sizes > 0, sizes, 1.0), 0.0))


def _verdict(results: Results, named: Mapping[str, Sequence[str]], other: str) -> Verdict:
    gain, lower, upper = (
        results[f"advantage{end}"].values[:, 0] for end in ("", "_lower", "_upper")
    )
    verdicts = []
    for row, learned in enumerate(LEARNED):
        state: State = "too_few"
        outcome = "no difference is shown"
        if lower[row] > 0:
            state, outcome = "supported", "the task's own heads do better"
        elif upper[row] < 0:
            state, outcome = "disagreement", "the task's own heads do worse"
        against = f"({amount(gain[row], '+')} nats against the heads of {other})."
        verdicts.append(Verdict(state, f"{learned}: {outcome} {against}"))
    verdict = verdicts[0] & verdicts[1]
    shared = sorted(set(named[WHOSE[0]]) & set(named[WHOSE[1]]))
    if not shared:
        return verdict
    return Verdict(verdict.state, f"{verdict.text} {', '.join(shared)} serve both.")

"""Tuning: a few heads learn a weight or an offset for a task, and whose heads they are counts.

First every head learns a factor for its output that makes wanted words likely (the model itself
stays as it is); the heads whose factor moves furthest from 1 are the task's. Then those few heads
alone learn, once more their factors, or a vector added to their output at every position. The same
is done with as many heads that another task has selected, and with random ones: where the task's
own heads do no better, the selection says nothing about where the task is done. Learned on every
other prompt, measured on the rest. By default the wanted words are the task's wrong answers, since
a model that does a task already has nothing to learn.

Sources: Yin et al., LoFiT: Localized Fine-tuning on LLM Representations; Learning Task
Representations from In-Context Learning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.causal_check import random_sets
from headscope.analyses._interventions.edited_metric import Progress, counter
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import (
    averaged,
    dataset,
    heads,
    label,
    require,
    top,
    variable,
)
from headscope.kernels.errors import InvalidInput, NotApplicable

if TYPE_CHECKING:
    from headscope.probes.interventions.base import Edit
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

NEEDS = ()
KEEP = ("z",)
TASK = "ioi"
PROMPTS = 32

SOURCE = "LoFiT (Yin et al. 2024)"
GOALS = ("answers", "wrong")
LEARNED = ("weights", "offsets")
WHOSE = ("own heads", "another task's heads", "random heads")


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    goal: str = "wrong",
    other: str = "greater_than",
    count: int = 4,
    steps: int = 15,
    rate: float = 0.15,
    penalty: float = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Learn weights and offsets of a few heads for a task, and compare whose heads are taken.

    Parameters
    ----------
    capture
        Capture of the task with the kept ``z``, which says how large outputs are.
    model
        Model that was captured; its own weights stay as they are.
    task
        Task of four prompts or more: every other one is learned from, the rest are measured.
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
    progress
        Called with (done, total) steps.

    Returns
    -------
    Dataset with ``weight`` (layer, head; the learned factor, 1 for a head that the goal leaves
    alone), ``offset`` (layer, head; size of the learned offset over that of the head's output, 0
    for heads that do not learn), ``before`` (log-probability of the wanted words), ``tuned``
    (learned, whose) and ``tuned_accuracy`` (learned, whose; share of questions where a wanted word
    is the most likely one) and ``advantage`` (learned, against; own heads − the others, the same
    prompts), all on prompts that nothing was learned from and with 95 % intervals over them, but
    for ``weight`` and ``offset``, which are learned once.

    Raises
    ------
    HeadscopeError
        When the capture lacks ``z``, an option is out of range, a task has no wrong answers to aim
        for, is the other one itself, or has fewer than four prompts.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> result = execute("tuning", model, n=4, options={"steps": 1, "count": 1})
    >>> result["tuned"].dims, result["weight"].dims
    (('learned', 'whose'), ('layer', 'head'))
    """
    from headscope.analyses._interventions.ablation import encode_task, evaluate
    from headscope.analyses.head_importance import _tuned
    from headscope.probes.interventions import Gate, Offset
    from headscope.probes.prompts import tasks

    options.one_of("goal", goal, GOALS)
    options.at_least("count", count, 1)
    options.at_least("steps", steps, 1)
    options.at_least("rate", rate, 1e-6)
    options.at_least("penalty", penalty, 0)
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
    wanted = _tuned.aimed(task, goal)
    encoded = encode_task(model, wanted)
    learned_from, unseen = (encoded.part(slice(start, None, 2)) for start in (0, 1))
    drawn = tasks.make(other, tokenizer=model.tokenizer, n=len(learned_from), seed=seed)
    rival = encode_task(model, _tuned.aimed(drawn, goal))
    step = counter(progress, steps * (2 + len(LEARNED) * len(WHOSE)))
    how: dict[str, Any] = {"steps": steps, "rate": rate, "step": step}

    weight = _tuned.head_weights(model, learned_from, penalty=penalty, **how)
    others = _tuned.head_weights(model, rival, penalty=penalty, **how)
    own, theirs = (top(np.abs(each - 1), count) for each in (weight, others))
    rest = [head for head in pool if head not in {*own, *theirs}]
    sets = dict(zip(WHOSE, (own, theirs, random_sets(rest, count, 1, seed)[0]), strict=True))
    sizes = _tuned.output_sizes(capture)

    chance = np.empty((len(unseen), len(LEARNED), len(WHOSE)))
    right, norm = np.empty_like(chance), np.zeros((model.layers, model.heads))
    for column, (whose, some) in enumerate(sets.items()):
        factor = _tuned.head_weights(model, learned_from, heads=some, **how)
        vector = _tuned.offsets(model, learned_from, some, sizes, **how)
        if whose == WHOSE[0]:
            norm = _relative(vector.numpy(), sizes.numpy())
        edits: tuple[tuple[Edit, ...], ...] = (
            (Gate(_filled(factor)),), (Offset(tuple(some), vector),),
        )  # fmt: skip
        for row, edit in enumerate(edits):
            chance[:, row, column] = evaluate(model, unseen, edit, "log_probability")
            right[:, row, column] = evaluate(model, unseen, edit, "accuracy")

    aim = "wrong answers" if goal == "wrong" else "answers"
    what = (
        f"{aim} of {task.name}, learned from {len(learned_from)} prompts in {steps} steps, "
        f"measured on {len(unseen)} others; other task: {other}"
    )
    given: dict[str, Any] = {"seed": seed, "source": SOURCE, "evidence": "causal",
                             "convention": what}  # fmt: skip
    both = ("learned", "whose")
    before = evaluate(model, unseen, (), "log_probability")
    variables = {
        "weight": variable(
            ("layer", "head"), weight, f"Weight learned for the {aim} of {task.name}", "factor",
            "sequential", source=SOURCE, convention=f"1: left alone; penalty {penalty:g}; {what}",
        ),
        "offset": variable(
            ("layer", "head"), norm, "Learned offset", "share of the head's output", "sequential",
            0, source=SOURCE, convention=f"norm over that of a typical output; {what}",
        ),
        **averaged("before", (), before, f"Log-probability of the {aim} before", "nats",
                   "diverging", **given),
        **averaged("tuned", both, chance, f"Log-probability of the {aim}, heads tuned", "nats",
                   "diverging", **given),
        **averaged("tuned_accuracy", both, right, f"{aim.capitalize()} given, heads tuned",
                   "share of answers", "sequential", 0, 1, **given),
        **averaged("advantage", ("learned", "against"), chance[:, :, :1] - chance[:, :, 1:],
                   "Own heads − other heads, log-probability", "nats", "diverging", **given),
    }  # fmt: skip
    named = {whose: [label(head) for head in some] for whose, some in sets.items()}
    return dataset(
        capture,
        variables,
        {"learned": list(LEARNED), "whose": list(WHOSE), "against": list(WHOSE[1:])},
        convention=what,
        tuned_heads=named,
        note=_note(variables, named, other),
    )


def _filled(factor: NDArray[np.float64]) -> Any:
    """Return factors as a tensor, 1 in layers without an attention map."""
    import torch

    return torch.from_numpy(np.nan_to_num(factor, nan=1.0).astype(np.float32))


def _relative(vector: NDArray[Any], sizes: NDArray[Any]) -> NDArray[np.float64]:
    """Return the root mean square of each head's vector over that of its output; 0 where none."""
    root = np.sqrt((vector.astype(np.float64) ** 2).mean(-1))
    return np.asarray(np.where(sizes > 0, root / np.where(sizes > 0, sizes, 1.0), 0.0))


def _note(variables: dict[str, xr.Variable], named: Mapping[str, Sequence[str]], other: str) -> str:
    gain, lower, upper = (variables[f"advantage{end}"].values for end in ("", "_lower", "_upper"))
    said = []
    for row, learned in enumerate(LEARNED):
        against = f"{gain[row, 0]:+.2g} nats against the heads of {other}"
        if lower[row, 0] > 0:
            said.append(f"{learned}: the task's own heads do better ({against})")
        elif upper[row, 0] < 0:
            said.append(f"DISAGREEMENT, {learned}: the task's own heads do worse ({against})")
        else:
            said.append(f"INCONCLUSIVE, {learned}: no difference is shown ({against})")
    shared = set(named[WHOSE[0]]) & set(named[WHOSE[1]])
    both = f"; {', '.join(sorted(shared))} serve both" if shared else ""
    return f"{'; '.join(said)}{both}."

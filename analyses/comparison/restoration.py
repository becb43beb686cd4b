"""Restoration: the attention of chosen heads is repaired, and the recovered metric measured."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr

from headscope.analyses._interventions.ablation import Array, evaluate
from headscope.analyses._interventions.causal_check import random_sets
from headscope.analyses._interventions.head_sets import Head
from headscope.analyses._interventions.metrics import METRICS, UNITS
from headscope.analyses._runtime.options import AtLeast, OneOf
from headscope.analyses._runtime.results import Results, label
from headscope.analyses._runtime.verdict import Verdict
from headscope.analyses._stats.bootstrap import draws as resample
from headscope.analyses._stats.bootstrap import percentiles
from headscope.kernels.errors import InvalidInput
from headscope.kernels.formatting import amount
from headscope.probes import capture
from headscope.probes.capturing.attention_pattern import pattern as attention_pattern
from headscope.probes.interventions import Edit, FixPattern, Inject
from headscope.probes.interventions.base import check_heads
from headscope.probes.interventions.named_patterns import PATTERNS
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task

OWN = "own"


def own_patterns(model: Model, prompt: Any, heads: Sequence[Head]) -> tuple[Edit, ...]:
    """Return the weights of heads on one prompt as edits that put them back.

    ``prompt`` is one that `capture` takes, and the edits hold for prompts of its length; ``heads``
    are (layer, head) pairs.

    Examples
    --------
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> [edit.head for edit in own_patterns(model, [[0, 5, 6]], [(1, 2)])]
    [(1, 2)]
    """
    captured = capture(model, prompt, stats=("lse",), keep=("q", "k"))
    return tuple(
        FixPattern(
            (layer, head),
            torch.from_numpy(np.array(attention_pattern(captured, layer, head), np.float32)),
        )
        for layer, head in heads
    )


def restore(
    model: Model,
    task: Task,
    heads: Sequence[Head],
    pattern: str = OWN,
    *,
    broken: Sequence[Edit] = (),
    reference: Model | None = None,
    metric: str = "task",
    draws: int = 5,
    seed: int = 0,
) -> xr.Dataset:
    """Repair the attention of chosen heads of a broken model, and measure how its metric recovers.

    Parameters
    ----------
    model
        The model that does the task badly, or badly under ``broken``.
    task
        The task whose metric should return.
    heads
        Heads that are repaired, as (layer, head) pairs.
    pattern
        A pattern known by name (``previous``, ``first``, ``itself``, ``uniform``), or ``own``: what
        the same heads attend to, prompt by prompt, in the reference, or without ``broken``.
    broken
        Edits that break the model; the repair comes after them.
    reference
        A model of the same shape that does the task.
    metric
        ``task`` (the task's own), ``logit_difference``, ``probability_difference``,
        ``log_probability`` or ``accuracy``.
    draws
        Number of random sets of as many other heads that are repaired alike, as a control.
    seed
        Seed of these sets and of the bootstrap over prompts.

    Returns
    -------
    Dataset with ``score`` (condition; ``broken``, ``chosen heads repaired``, ``random other heads
    repaired`` and, where there is one, ``whole``: the reference, or the model without ``broken``),
    ``gain`` (what the repair brings) and ``gain_over_random``, paired by prompt, and ``recovered``
    (gain as a share of what was broken; with a whole model only), with 95 % intervals over prompts.

    Examples
    --------
    >>> from headscope.probes import load_model, tasks
    >>> from headscope.probes.interventions import Inject
    >>> model = load_model("headscope/bundled")
    >>> task = tasks.make("induction", model.tokenizer, n=2)
    >>> result = restore(model, task, [(0, 0)], broken=[Inject([(0, 0)], "uniform")], draws=1)
    >>> result["score"]["condition"].values.tolist()[0]
    'whole'

    Source: Merullo et al., Circuit Component Reuse Across Tasks in Transformer Language Models.
    """
    OneOf(METRICS).check("metric", metric)
    OneOf((OWN, *PATTERNS)).check("pattern", pattern)
    AtLeast(1).check("draws", draws)
    chosen = tuple(dict.fromkeys((int(layer), int(head)) for layer, head in heads))
    if not chosen:
        raise InvalidInput("heads: none to repair; give (layer, head) pairs")
    check_heads("heads", chosen, model.geometry)
    intact = reference if reference is not None else (model if broken else None)
    if pattern == OWN and intact is None:
        raise InvalidInput(
            "pattern: own is what heads attend to in a whole model, and there is none; give broken "
            "edits or a reference, or name a pattern"
        )
    if intact is not None and (intact.layers, intact.heads) != (model.layers, model.heads):
        raise InvalidInput(
            f"reference: {intact.layers} layers × {intact.heads} heads, and the model has "
            f"{model.layers} × {model.heads}; heads cannot be matched"
        )
    pool = [(layer, head) for layer in model.geometry.attending for head in range(model.heads)]
    remaining = [head for head in pool if head not in set(chosen)]
    if len(remaining) < len(chosen):
        raise InvalidInput(
            f"heads: {len(chosen)} of {len(pool)} leave fewer than as many others to compare with"
        )
    name = task.metric if metric == "task" else metric
    damage = tuple(broken)

    def repaired(chosen_heads: Sequence[Head]) -> Array:
        if pattern != OWN:
            return evaluate(model, task, (*damage, Inject(tuple(chosen_heads), pattern)), name)
        assert intact is not None
        singles = [replace(task, prompts=(prompt,)) for prompt in task.prompts]
        scores = [
            evaluate(model, single, (*damage, *own_patterns(intact, single, chosen_heads)), name)
            for single in singles
        ]
        return np.concatenate(scores)

    columns = {
        "broken": evaluate(model, task, damage, name),
        "chosen heads repaired": repaired(chosen),
        "random other heads repaired": np.mean(
            [
                repaired(chosen_heads)
                for chosen_heads in random_sets(remaining, len(chosen), draws, seed)
            ],
            axis=0,
        ),
    }
    if intact is not None:
        columns = {"whole": evaluate(intact, task, (), name), **columns}
    samples = np.stack(list(columns.values()), axis=1)
    convention = (
        f"{name.replace('_', ' ')} on {len(task)} prompts of {task.name}; pattern {pattern} put "
        f"into {', '.join(map(label, chosen))}, or into as many others ({draws} draws)"
    )
    gain = columns["chosen heads repaired"] - columns["broken"]
    over = columns["chosen heads repaired"] - columns["random other heads repaired"]
    results = Results(xr.Dataset(), seed=seed, convention=convention, evidence="causal")
    units = (UNITS[name], "diverging")
    results.add_means(
        ("score", ("condition",), samples, f"{task.name} before and after repair", units),
        ("gain", (), gain, "Gain by the repair, same prompts", units),
        ("gain_over_random", (), over, "Gain over a repair of random other heads", units),
    )
    if intact is not None:
        results.add_interval(
            "recovered", (), _share(gain, columns["whole"] - columns["broken"], seed),
            "Share of what was broken that returns", "share", "diverging",
            convention=f"mean gain over mean loss; {convention}",
        )  # fmt: skip
    verdict = _verdict(results, name)
    return xr.Dataset(
        results.variables,
        coords={"condition": list(columns)},
        attrs={
            "model": model.name, "revision": model.revision, "task": task.name, "seed": seed,
            "heads": [label(head) for head in chosen], "pattern": pattern,
            "reference": "" if reference is None else f"{reference.name} {reference.revision}",
            "broken": [str(edit.describe()) for edit in damage],
            "verdict": verdict.state, "note": verdict.text,
        },
    )  # fmt: skip


def _share(gain: Array, missing: Array, seed: int) -> tuple[float, float, float]:
    """Return the ratio of two means and its bootstrap interval over prompts."""
    if not missing.mean() > 0:
        raise InvalidInput(
            "broken: the whole model does the task no better than the broken one, so nothing can "
            "be recovered; break what the task needs"
        )
    ratio = float(gain.mean() / missing.mean())
    if len(gain) < 2:
        return ratio, float("nan"), float("nan")
    weights = resample(len(gain), 1000, seed)
    lost = weights @ missing
    shares = np.where(lost > 0, weights @ gain / lost, np.nan)
    lower, upper = map(float, percentiles(shares, 0.025))
    return ratio, lower, upper


def _verdict(results: Results, metric: str) -> Verdict:
    gain, over = (
        (float(results[name].values), float(results[f"{name}_lower"].values))
        for name in ("gain", "gain_over_random")
    )
    text = f"the repair changes the {metric.replace('_', ' ')} by {amount(gain[0], '+')}"
    if not np.isfinite(gain[1]):
        return Verdict("too_few", f"One prompt has no interval; {text}.")
    if gain[1] > 0 and over[1] > 0:
        more = f"{amount(over[0], '+')} more than with random other heads"
        return Verdict("supported", f"The metric recovers: {text}, {more}.")
    if gain[1] > 0:
        text = f"Not specific: {text}, but as many random other heads do as well."
        return Verdict("not_supported", text)
    return Verdict("not_supported", f"No recovery: {text}, and the interval reaches 0.")

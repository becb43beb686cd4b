"""Injection: the pattern of a head is replaced, to test whether the task needs its own.

In every head in turn the attention weights are replaced by a map known beforehand (each query on
the token before, on the first token, on all alike) or edited (the last keys only, the first key
hidden), while values and output projection stay the head's own. A head whose task survives the
previous-token map does with its attention what that map does, whatever its weights are; one that
survives the uniform map does not use its attention at all. The reference is the head without any
output. The weights of all heads, put back as a fixed map, change nothing, which is checked.

Sources: Xiao et al., Human Guided Exploitation of Interpretable Attention Patterns; TAB
(Transformer Attention Bottlenecks); DAM (dynamic attention masks).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from headscope.analyses._interventions import ablation, head_sets
from headscope.analyses._interventions.batched_edits import RowInject
from headscope.analyses._interventions.head_sets import Head
from headscope.analyses._interventions.metrics import METRICS, UNITS, AnswerMetric
from headscope.analyses._interventions.screening import Screen, screen
from headscope.analyses._runtime.options import AtLeast, OneOf
from headscope.analyses._runtime.results import Results, first_few, heads, labels, marked, require
from headscope.analyses._runtime.verdict import Verdict
from headscope.analyses._stats.effect_size import LEAST_PROMPTS
from headscope.analyses.comparison.restoration import own_patterns
from headscope.probes.interventions import Inject, Window
from headscope.probes.interventions.base import Edit
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tokens import EncodedTask

NEEDS = ()
TASK = "ioi"
PROMPTS = 16
SUPPORTS = {"hybrid"}

SOURCE = "Xiao et al., Human Guided Exploitation of Interpretable Attention Patterns"
MASKS = "DAM; TAB"
# Share of what the head's removal costs that a map may cost, and still stand in for the head.
STANDING_IN = 0.1
EDITS = {
    "previous": ("every query on the token before", "pattern: the token before, the first itself"),
    "first": ("every query on the first token", "pattern: the first token"),
    "uniform": ("every query on all keys alike", "pattern: all visible keys alike"),
    "window": ("the last keys only", "mask: the last {recent} keys, the query's own included"),
    "hidden_first": (
        "the first key hidden",
        "knock-out of the first key; the first query then sees none and the head writes 0 there",
    ),
    "removed": ("the head set to zero", "output set to zero"),
}


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    metric: Annotated[str, OneOf(METRICS)] = "task",
    recent: Annotated[int, AtLeast(1)] = 4,
    exhaustive: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Inject fixed patterns into every head in turn, and measure what the task loses.

    Parameters
    ----------
    capture, model, task
        Capture of the task whose metric is followed, for its provenance alone.
    metric
        ``task`` (the task's own), ``logit_difference``, ``probability_difference``,
        ``log_probability`` or ``accuracy``.
    recent
        Keys that the window leaves, the query's own included; 1 or more.
    exhaustive
        Edit every head, whatever their number. Without it, in a model of more than 64 heads:
        those that gradients rank first, and a random sample of the others.
    seed
        Seed of the bootstrap over prompts, and of the sample of heads.

    Returns
    -------
    Dataset with ``previous``, ``first``, ``uniform``, ``window``, ``hidden_first`` and ``removed``
    (layer, head; the metric lost, positive where the head's own pattern is needed, with 95 %
    intervals over prompts), ``own`` (the largest change of the metric of any prompt with every
    head's own weights put back as a fixed map; 0 but for rounding) and ``intact``. Attribute
    ``stand_ins`` names, for each map, the heads that the task needs and that the map stands in for:
    its cost is at most a tenth of the removal's.
    """
    require(capture, NEEDS, "injection")
    name = task.metric if metric == "task" else metric
    encoded = ablation.encode_task(model, task)
    clean = ablation.evaluate(model, encoded, (), name)
    units, convention = (
        UNITS[name],
        f"{name.replace('_', ' ')} on {len(clean)} prompts of {task.name}",
    )
    results = Results(capture, seed=seed, source=SOURCE, convention=convention)
    pool = heads(capture)
    chosen = screen(model, encoded, name, exhaustive=exhaustive, seed=seed)
    for key, (title, meaning) in EDITS.items():
        lost = clean[:, None, None] - _scores(model, encoded, name, key, recent, chosen)
        results.add_mean(
            key, ("layer", "head"), lost, f"Lost on {task.name}: {title}", units, "diverging",
            evidence="causal", source=MASKS if key in ("window", "hidden_first") else SOURCE,
            convention=f"intact − edited, {meaning.format(recent=recent)}, one head at a time, "
            f"{chosen.convention}; {convention}",
        )  # fmt: skip
    results.add(
        "own", (), _own_pattern_change(model, task, name, clean, pool),
        "Change with every head's own pattern put back", units, "sequential", 0, evidence="causal",
        convention=f"largest of any prompt; 0 but for rounding; {convention}",
    )  # fmt: skip
    results.add_mean("intact", (), clean, f"Intact {name.replace('_', ' ')}", units, "diverging")
    standing = _standing(results)
    return results.dataset(
        verdict=_verdict(standing, results), convention=convention, stand_ins=standing
    )


def _scores(
    model: Model, task: EncodedTask, metric: str, key: str, recent: int, chosen: Screen
) -> NDArray[np.float64]:
    """Return the metric with each of the chosen heads edited in one way (prompt, layer, head)."""
    if key == "removed":
        return ablation.ablate_each_head(model, task, metric, heads=chosen.heads)
    result = np.full((len(task), model.layers, model.heads), np.nan)
    pool = marked(chosen.heads.numpy())
    answers = AnswerMetric(metric, task.questions)
    if key in ("uniform", "window"):

        def edit(numbers: Tensor, prompts: list[int]) -> Edit:
            only = tuple(pool[at] for at in numbers.tolist())
            return Window(only, recent=recent, first=0) if key == "window" else Inject(only, key)

        starts = torch.tensor([layer for layer, _ in pool])
        scores = ablation.sweep(
            model, task.ids, task.question_positions, [answers], starts, edit, most=1
        )
    else:
        sets = head_sets.masks(model, [[head] for head in pool])
        scores = ablation.edit_sets(
            model, task, [answers], sets, lambda rows, prompts: RowInject(rows, key)
        )
    result[:, chosen.heads.numpy()] = scores[0]
    return result


def _own_pattern_change(
    model: Model, task: Task, metric: str, clean: NDArray[np.float64], pool: Sequence[Head]
) -> float:
    """Return the largest change of a prompt with every head's own weights put back."""
    singles = [replace(task, prompts=(prompt,)) for prompt in task.prompts]
    after = [
        ablation.evaluate(model, single, own_patterns(model, single, pool), metric)
        for single in singles
    ]
    return float(np.abs(np.concatenate(after) - clean).max())


def _standing(results: Results) -> dict[str, list[str]]:
    """List by map the needed heads that the map can replace."""
    removed = results["removed"].values
    effect_heads = results["removed"].attrs["effect_heads"].split()
    with np.errstate(invalid="ignore"):
        needed = removed > STANDING_IN * np.nanmax(removed)
        return {
            key: [
                name
                for name in labels(needed & (results[key].values <= STANDING_IN * removed))
                if name in effect_heads
            ]
            for key in EDITS
            if key not in ("removed", "hidden_first")
        }


def _verdict(standing: dict[str, list[str]], results: Results) -> Verdict:
    if results["removed"].attrs["effect"] == "too_few":
        text = f"Fewer than {LEAST_PROMPTS} prompts, so no head is known to be needed."
        return Verdict("too_few", text)
    named = "; ".join(f"{key}: {first_few(names)}" for key, names in standing.items() if names)
    return Verdict(
        "supported" if named else "not_supported",
        f"Heads that the task needs and that an edited pattern stands in for: {named or 'none'}.",
    )

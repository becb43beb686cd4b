"""Masking curves: accuracy against the number of heads taken out, best first or at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from headscope.analyses._interventions.causal_check import Head, Progress, random_sets
from headscope.analyses._runtime.results import interval, label
from headscope.analyses._stats.bootstrap import bootstrap, crossed
from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from headscope.probes.interventions.base import Edit
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

MASKINGS = {
    "zero": "the heads' outputs set to zero",
    "uniform": "the heads' attention made uniform, as zeroed queries do in the released code",
}
# Logits divided by this are equal to every digit that float32 holds of a weight.
FLAT = 1e6
CONDITIONS = ("top heads", "random other heads")


def masked(heads: Sequence[Head], masking: str) -> tuple[Edit, ...]:
    """Return the edits that take heads out."""
    from headscope.probes.interventions import Ablate, Temperature

    if not heads:
        return ()
    if masking == "zero":
        return (Ablate(heads=tuple(heads)),)
    return (Temperature(heads=tuple(heads), value=FLAT),)


def curve(
    model: Model,
    task: Task,
    ranked: Sequence[Head],
    counts: Sequence[int],
    *,
    masking: str,
    draws: int,
    seed: int,
    source: str,
    progress: Progress | None = None,
) -> tuple[dict[str, xr.Variable], dict[str, list[Any]], dict[str, Any]]:
    """Measure a task's accuracy without the K best heads and without K random others.

    Parameters
    ----------
    model, task
        The model, and the task whose accuracy is measured.
    ranked
        Every head, best first.
    counts
        Numbers K of heads.
    masking
        ``zero`` or ``uniform``.
    draws, seed
        Number of random sets for each K, drawn from the heads that are not among the K best.
    source
        Where the check comes from.
    progress
        Called with (done, total) ablations.

    Returns
    -------
    ``masking`` (count, condition) with intervals: over prompts for the top heads, over prompts and
    draws for the random ones; the coordinates; a record with the heads and a verdict.

    Raises
    ------
    NotApplicable
        When a K exceeds half of the heads.
    """
    from headscope.analyses._interventions.ablation import encode_task, evaluate

    if max(counts) > len(ranked) // 2:
        raise NotApplicable(
            f"counts: {max(counts)} of {len(ranked)} heads leave fewer than as many random "
            f"others; take {len(ranked) // 2} or fewer"
        )
    encoded = encode_task(model, task)
    total, done = 1 + len(counts) * (1 + draws), 0

    def accuracy(heads: Sequence[Head]) -> NDArray[np.float64]:
        nonlocal done
        values = evaluate(model, encoded, masked(heads, masking), "accuracy")
        done += 1
        if progress is not None:
            progress(done, total)
        return values

    whole = bootstrap(accuracy(()), seed=seed)
    rows: list[tuple[tuple[Any, ...], tuple[Any, ...]]] = [(whole, whole)]
    taken: dict[str, list[str]] = {}
    for count in counts:
        top = list(ranked[:count])
        taken[str(count)] = [label(head) for head in top]
        sets = random_sets(ranked[count:], count, draws, seed + count)
        others = np.stack([accuracy(heads) for heads in sets])
        rows.append((bootstrap(accuracy(top), seed=seed), crossed(others, seed=seed)))
    mean, lower, upper = np.moveaxis(np.asarray(rows, dtype=np.float64), -1, 0)
    convention = (
        f"accuracy on {len(task)} prompts of {task.name}; {MASKINGS[masking]}; random: K of the "
        f"heads that are not among the K best, {draws} draws"
    )
    axis = [0, *counts]
    verdict = _verdict(axis, mean, lower, upper)
    variables = interval(
        "masking", ("count", "condition"), mean, lower, upper,
        "Accuracy without the K best and K random heads", "share of answers", "sequential", 0, 1,
        convention=convention, source=source, note=verdict, evidence="causal",
    )  # fmt: skip
    record = {"heads": taken, "note": verdict, "accuracy": mean.round(4).tolist()}
    return variables, {"count": axis, "condition": list(CONDITIONS)}, record


def _verdict(
    counts: Sequence[int],
    mean: NDArray[np.float64],
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
) -> str:
    """Say from which K on the best heads matter more than random ones."""
    if mean[0, 0] < 0.5:
        return (
            f"INCONCLUSIVE: the intact model does not solve the task (accuracy {mean[0, 0]:.2f}), "
            "so masking cannot show what the heads do; their score is correlational here."
        )
    apart = [row for row in range(1, len(counts)) if upper[row, 0] < lower[row, 1]]
    if not apart:
        return (
            "DISAGREEMENT: at no K does masking the best heads cost more than masking random "
            "others; the score is correlational here."
        )
    row = apart[-1]
    return (
        f"Masking agrees: without the best {counts[row]} heads accuracy is {mean[row, 0]:.2f} "
        f"({lower[row, 0]:.2f} to {upper[row, 0]:.2f}), without {counts[row]} random others "
        f"{mean[row, 1]:.2f} ({lower[row, 1]:.2f} to {upper[row, 1]:.2f}), intact {mean[0, 0]:.2f};"
        f" they part from K = {counts[apart[0]]} on."
    )

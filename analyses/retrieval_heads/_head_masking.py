"""Masking curves: accuracy against the number of ablated heads, best first or at random."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from headscope.analyses._interventions.ablation import ablated_metric, encode_task, evaluate
from headscope.analyses._interventions.causal_check import Head, Measure, random_sets
from headscope.analyses._runtime.results import ZERO_TO_ONE, Results, label
from headscope.analyses._runtime.verdict import Verdict, causal_verdict
from headscope.analyses._stats.bootstrap import Array, bootstrap, crossed
from headscope.analyses._stats.effect_size import exceeds_zero
from headscope.analyses.retrieval_heads import _needle_steps
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import amount
from headscope.probes.interventions import Ablate, Temperature
from headscope.probes.interventions.base import Edit
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task

MASKINGS = {
    "zero": "outputs set to zero",
    "uniform": "attention made uniform, as zeroed queries do in the released code",
}
RECALL = "ROUGE-1 recall of the greedy answer"
# Logits divided by this are equal to every digit that float32 holds of a weight.
FLAT = 1e6
CONDITIONS = ("top heads", "random other heads")


def masked(heads: Sequence[Head], masking: str) -> tuple[Edit, ...]:
    """Return the edits that mask heads."""
    if not heads:
        return ()
    if masking == "zero":
        return (Ablate(tuple(heads)),)
    return (Temperature(tuple(heads), FLAT),)


def measure(
    model: Model, task: Task, masking: str, decoding: str, new_tokens: int
) -> tuple[Measure, str, str]:
    """Return what scores a task with sets of heads masked; its name, and how it masks.

    Greedy answers are written with the heads masked from the last token of the prompt on, as in the
    released code, and scored by their recall of the needle.
    """
    encoded = encode_task(model, task)
    if decoding != "greedy" and masking == "zero":
        return (
            lambda sets: ablated_metric(model, encoded, "accuracy", sets),
            "accuracy",
            MASKINGS[masking],
        )

    def score(heads: Sequence[Head]) -> Array:
        edits = masked(heads, masking)
        if decoding != "greedy":
            return evaluate(model, encoded, edits, "accuracy")
        rows = zip(encoded.ids, encoded.questions, strict=True)
        return np.array(
            [
                _needle_steps.recall(model, ids, questions, new_tokens, edits)
                for ids, questions in rows
            ]
        )

    def scores(sets: Sequence[Sequence[Head]]) -> Array:
        columns = []
        for heads in sets:
            columns.append(score(heads))
        return np.stack(columns, axis=1)

    if decoding != "greedy":
        return scores, "accuracy", MASKINGS[masking]
    return scores, RECALL, f"{MASKINGS[masking]}, while decoding,"


def curve(
    results: Results,
    model: Model,
    task: Task,
    ranked: Sequence[Head],
    counts: Sequence[int],
    *,
    masking: str,
    draws: int,
    decoding: str,
    new_tokens: int,
) -> tuple[dict[str, list[Any]], dict[str, Any], Verdict]:
    """Add a task's accuracy without the K best heads and without K random others.

    ``ranked`` is every head, best first. ``masking`` (count, condition) has intervals: over prompts
    for the top heads, over prompts and draws for the random ones, which are drawn from the heads
    that are not among the K best. Returned are the coordinates, a record with the heads and the
    accuracies, and what they say.
    """
    if max(counts) > len(ranked) // 2:
        raise NotApplicable(
            f"counts: {max(counts)} of {len(ranked)} heads leave fewer than as many random "
            f"others; take {len(ranked) // 2} or fewer"
        )
    accuracy, scored, convention = measure(model, task, masking, decoding, new_tokens)
    seed = results.seed
    sets: list[Sequence[Head]] = [()]
    for count in counts:
        sets += [ranked[:count], *random_sets(ranked[count:], count, draws, seed + count)]
    scores = accuracy(sets)
    whole = bootstrap(scores[:, 0], seed=seed)
    rows: list[Any] = [(whole, whole)]
    over: list[Array] = []
    for part in np.split(scores[:, 1:], len(counts), axis=1):
        rows.append((bootstrap(part[:, 0], seed=seed), crossed(part[:, 1:].T, seed=seed)))
        over.append(part[:, 1:].mean(1) - part[:, 0])
    mean, lower, upper = np.moveaxis(np.asarray(rows, dtype=np.float64), -1, 0)
    axis = [0, *counts]
    verdict = _verdict(axis, mean, lower, upper, np.stack(over, axis=1), scored)
    results.add_interval(
        "masking", ("count", "condition"), (mean, lower, upper),
        "Accuracy without the K best and K random heads", "share of answers", *ZERO_TO_ONE,
        convention=f"{scored} on {len(task)} prompts of {task.name}; the heads' {convention}; "
        f"random: K of the heads that are not among the K best, {draws} draws",
        note=verdict.text, evidence="causal",
    )  # fmt: skip
    names = {str(count): [label(head) for head in ranked[:count]] for count in counts}
    record = {"heads": names, "note": verdict.text, "accuracy": mean.round(4).tolist()}
    return {"count": axis, "condition": list(CONDITIONS)}, record, verdict


def _verdict(
    counts: Sequence[int], mean: Array, lower: Array, upper: Array, over: Array, scored: str
) -> Verdict:
    """Conclude from which K on the best heads matter more than random ones.

    ``over`` (prompt, count) is by how much more their masking costs.
    """
    if mean[0, 0] < 0.5:
        return Verdict(
            "too_few",
            f"The clean model does not solve the task ({scored} {amount(mean[0, 0])}), so masking "
            "cannot show what the heads do; their score is correlational here.",
        )
    different = np.flatnonzero(exceeds_zero(over))
    row = int(different[-1]) + 1 if len(different) else len(counts) - 1
    text = (
        f"without the best {counts[row]} heads {scored} is {amount(mean[row, 0])} "
        f"({amount(lower[row, 0])} to {amount(upper[row, 0])}), without {counts[row]} random "
        f"others {amount(mean[row, 1])} ({amount(lower[row, 1])} to {amount(upper[row, 1])}), "
        f"clean model {amount(mean[0, 0])}"
    )
    text += f"; they part from K = {counts[different[0] + 1]} on" if len(different) else ""
    remark = "; they part at no K, so the score is correlational here"
    return causal_verdict(over, text, remark, np.array([row - 1]))

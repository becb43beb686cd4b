"""Retrieval heads: heads that copy a fact from far back when it is asked for.

A needle (a fact stated once in a long text) is asked for at the end. At each decode step a head
copies when the largest weight of its last row lies on the needle and the token there is the one
that the model generates. The score is the share of the needle's distinct tokens copied (set, the
paper's text) or the number of copying steps over the needle's length (multiset, its released
code, which can exceed 1). The recall score is the mean weight that a head sends from each question
of multi-query recall to the stated value. Beside each stands the causal check: the accuracy without
the top heads, and without as many random others.

Sources: Wu et al., Retrieval Head Mechanistically Explains Long-Context Factuality (2404.15574);
Arora et al., Zoology (2312.04927), for multi-query recall.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions import causal_check
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import (
    above,
    attending,
    averaged,
    dataset,
    heads,
    label,
    require,
    top,
    variable,
)

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task
    from headscope.probes.prompts.tokens import EncodedQuestion

NEEDS = ("topk_key",)
TASK = "needle"
PROMPTS = 16

SOURCE = "Wu et al. 2404.15574"


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    threshold: float = 0.1,
    least_recalled: float = 0.5,
    recall_prompts: int = 12,
    draws: int = 5,
    seed: int = 0,
    progress: causal_check.Progress | None = None,
) -> xr.Dataset:
    """Score every head by what it copies from a needle, and by its weight on recalled facts.

    Each question of a prompt is one decode step, read with the prompt's own words before it
    (teacher forcing); the needle is the evidence of all its questions.

    Parameters
    ----------
    capture
        Capture of the task with ``topk_key``.
    model
        Model that was captured; its heads are ablated for the causal checks.
    task
        Planted needles: prompts whose questions name their evidence.
    threshold
        Mean set score above which a head is a retrieval head, and mean weight above which it is a
        recall head. These heads (the best one where none is) are ablated in the causal checks.
    least_recalled
        Prompts count only when the model generates more than this share of the needle's tokens.
    recall_prompts
        Number of prompts of multi-query recall, made with the task's seed.
    draws
        Number of random sets of as many other heads.
    seed
        Seed of the bootstrap over prompts and of the random sets.
    progress
        Called with (done, total) ablations.

    Returns
    -------
    Dataset with ``retrieval_set`` (layer, head; 0 to 1), ``retrieval_multiset`` (layer, head; from
    0, may exceed 1), ``recall`` (layer, head; share of weight), each with 95 % intervals over
    prompts; ``retrieval_share`` (percent of heads above the threshold), ``recalled`` (share of
    needle tokens that the model generates), ``needle_accuracy`` and ``recall_accuracy``
    (condition). The retrieval scores are missing where the model recalls no needle.

    Raises
    ------
    HeadscopeError
        When the capture lacks a variable, no question names its evidence, or an option is out of
        range.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> result = execute("retrieval", model, n=2, options={"draws": 1, "recall_prompts": 2})
    >>> result["recall_accuracy"].dims
    ('condition',)
    """
    from headscope.probes import capture as capture_prompts
    from headscope.probes.prompts import tasks

    options.between("threshold", threshold, 0, 1)
    options.between("least_recalled", least_recalled, 0, 1)
    for name, value in (
        ("recall_prompts", recall_prompts), ("draws", draws),
    ):  # fmt: skip
        options.at_least(name, value, 1)
    require(capture, NEEDS, "retrieval")

    steps = _Steps(capture, model, task)
    counted = steps.recalled > least_recalled
    convention = (
        f"decode step = question, teacher-forced; prompts with more than {least_recalled:.0%} of "
        f"the needle generated count ({int(counted.sum())} of {len(counted)})"
    )
    variables: dict[str, xr.Variable] = {}
    for name, scores, title, high, form in (
        ("retrieval_set", steps.sets, "Retrieval score (set)", 1, "|g ∩ k| / |k|, as in the paper"),
        ("retrieval_multiset", steps.multisets, "Retrieval score (multiset)", None,
         "copying steps / needle length, as in the released code; can exceed 1"),
    ):  # fmt: skip
        chosen = np.where(counted[:, None, None], scores, np.nan)
        variables |= averaged(
            name, ("layer", "head"), chosen, title, "share of the needle", "sequential", 0, high,
            seed=seed, convention=f"{form}; {convention}", source=SOURCE,
        )  # fmt: skip

    recall_task = tasks.make("recall", tokenizer=model.tokenizer, n=recall_prompts, seed=task.seed)
    asked = capture_prompts(model, recall_task, stats=("target_mass",), targets=("evidence",))
    mass = asked["target_mass"].sel(target="evidence").transpose("prompt", "layer", "head", "query")
    recall = mass.mean("query", skipna=True).values.astype(np.float64)
    variables |= averaged(
        "recall", ("layer", "head"), recall, "Weight on the stated value when it is asked for",
        "share", "sequential", 0, 1, seed=seed,
        convention=f"mean over the questions of {recall_prompts} prompts of multi-query recall",
        source="Zoology 2312.04927",
    )  # fmt: skip

    score, weight = variables["retrieval_set"].values, variables["recall"].values
    passed = score > threshold
    scored = bool(counted.any())
    variables["retrieval_share"] = variable(
        (), passed[attending(capture)].mean() * 100 if scored else np.nan,
        "Share of heads above the threshold", "%", "sequential", 0, 100, source=SOURCE,
        convention=f"mean set score > {threshold:g}; {convention}",
    )  # fmt: skip
    variables |= averaged(
        "recalled", (), steps.recalled, "Needle tokens that the model generates", "share",
        "sequential", 0, 1, seed=seed,
    )  # fmt: skip

    pool = heads(capture)
    checks = {
        "needle": (task, score if scored else weight),
        "recall": (recall_task, weight),
    }
    notes: dict[str, str] = {}
    if not scored:
        notes["scores"] = "The model recalls none of the needles, so no head can be scored on them."
    records: dict[str, Any] = {}
    for name, (subject, ranking) in checks.items():
        kind = "retrieval" if name == "needle" and scored else "recall"
        results, conditions, records[name] = causal_check.check(
            f"{name}_accuracy", f"Accuracy on {subject.name}", model, subject,
            above(ranking, threshold, len(pool) // 2), pool, kind=kind, draws=draws, seed=seed,
            progress=progress,
        )  # fmt: skip
        # Both checks share one axis, so their conditions carry the same names.
        conditions[1] = "top heads ablated"
        variables |= results
        notes[name] = f"{subject.name}: {records[name]['note']}"

    return dataset(
        capture,
        variables,
        {"condition": conditions},
        convention=convention,
        heads_by_type={
            "retrieval": [label(head) for head in top(score, int(passed.sum()))],
            "recall": [label(head) for head in top(weight, int((weight > threshold).sum()))],
        },
        causal=records,
        note=" ".join(notes.values()),
    )


class _Steps:
    """What every head copies at the decode steps of every prompt."""

    def __init__(self, capture: xr.Dataset, model: Model, task: Task) -> None:
        from headscope.analyses.retrieval_heads import _needle_steps
        from headscope.kernels.errors import NotApplicable
        from headscope.probes.prompts.tokens import encode

        model.check_predicts()
        encoded = encode(task, model.tokenizer)
        if len(encoded.ids) != capture.sizes["prompt"]:
            raise NotApplicable(
                f"capture: it holds {capture.sizes['prompt']} prompts and the task has "
                f"{len(encoded.ids)}; capture this task"
            )
        if not all(any(each.evidence for each in asked) for asked in encoded.questions):
            raise NotApplicable("evidence: a prompt names none; give the positions of the answer")
        keys = capture["topk_key"].sel(rank=1).transpose("prompt", "query", "layer", "head")
        scores = []
        for prompt, (ids, asked) in enumerate(zip(encoded.ids, encoded.questions, strict=True)):
            rows = keys.isel(prompt=prompt, query=[each.at for each in asked]).values
            looked = np.nan_to_num(rows, nan=-1.0).astype(np.int64)
            scores.append(_needle_steps.score(ids, asked, looked, _generate(model, ids, asked)))
        sets, multisets, recalled = zip(*scores, strict=True)
        self.sets, self.multisets = np.stack(sets), np.stack(multisets)
        self.recalled = np.asarray(recalled, dtype=np.float64)


def _generate(
    model: Model, ids: tuple[int, ...], asked: tuple[EncodedQuestion, ...]
) -> NDArray[np.int64]:
    """Return the most probable next token at each decode step (step,)."""
    import torch

    from headscope.probes.attention.forward import logits

    with torch.no_grad():
        rows = logits(model, torch.tensor([ids]))[0, [each.at for each in asked]]
    return np.asarray(rows.argmax(-1).cpu().numpy(), dtype=np.int64)

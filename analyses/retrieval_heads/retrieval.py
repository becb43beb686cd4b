"""Retrieval heads: heads that copy a fact from far back when it is asked for.

A needle (a fact stated once in a long text) is asked for at the end. At each decode step a head
copies when the largest weight of its last row lies on the needle and the token there is the one
that the model generates. The score is the share of the needle's distinct tokens copied (set, the
paper's text) or the number of copying steps over the needle's length (multiset, its released
code, which can exceed 1). Decode steps are the questions, with the right words before them (teacher
forcing), or those of the model's own greedy answer, which then counts by its ROUGE-1 recall of the
needle, as in the paper. The recall score is the mean weight that a head sends from each question
of multi-query recall to the stated value. The causal check of each is the accuracy without the top
heads, and without as many random others.

Sources: Wu et al., Retrieval Head Mechanistically Explains Long-Context Factuality (2404.15574);
Arora et al., Zoology (2312.04927), for multi-query recall.
"""

from typing import Annotated, Any

import numpy as np
import xarray as xr

from headscope.analyses._interventions import causal_check
from headscope.analyses._measurements import recall_capacity
from headscope.analyses._runtime.options import AtLeast, Between, OneOf
from headscope.analyses._runtime.results import (
    GRID,
    SHARE,
    Results,
    above,
    attending,
    heads,
    named,
    require_prompts,
)
from headscope.analyses._runtime.verdict import Verdict
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses.retrieval_heads import _head_masking, _needle_steps
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import percent
from headscope.probes import capture as capture_prompts
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tokens import encode

NEEDS = ()
QUICK = {"draws": 1, "recall_prompts": 2}
SUPPORTS = {"hybrid"}
TASK = "needle"
PROMPTS = 16

SOURCE = "Wu et al. 2404.15574"
UNSCORED = "The model recalls none of the needles, so no head can be scored on them."


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    decoding: Annotated[str, OneOf(tuple(_needle_steps.DECODINGS))] = "teacher_forced",
    new_tokens: Annotated[int, AtLeast(1)] = 16,
    form: Annotated[str, OneOf(tuple(_needle_steps.FORMS))] = "set",
    threshold: Annotated[float, Between(0, 1)] = 0.1,
    least_recalled: Annotated[float, Between(0, 1)] = 0.5,
    masking: Annotated[str, OneOf(tuple(_head_masking.MASKINGS))] = "zero",
    recall_prompts: Annotated[int, AtLeast(1)] = 16,
    draws: Annotated[int, AtLeast(1)] = 3,
    seed: int = 0,
) -> xr.Dataset:
    """Score every head by what it copies from a needle, and by its weight on recalled facts.

    The needle is the evidence of all questions of a prompt.

    Parameters
    ----------
    capture, model, task
        Capture, for its provenance alone, of planted needles: prompts whose questions name their
        evidence.
    decoding
        ``teacher_forced`` (each question is one decode step, read with the prompt's own words
        before it) or ``greedy`` (the model answers the first question on its own, as in the paper).
    new_tokens
        Tokens that the model writes greedily, to the end of the line at most; the released code
        allows 50.
    form
        Score that makes a retrieval head: ``set`` (the paper's text) or ``multiset`` (its code).
    threshold
        Mean score above which a head is a retrieval head, and mean weight above which it is a
        recall head. These heads (the best one where none is) are masked in the causal checks.
    least_recalled
        Prompts count only when the model generates more than this share of the needle: of its
        tokens, or the ROUGE-1 recall of the greedy answer.
    masking
        Of the needle's check: ``zero`` (the heads' outputs are zero) or ``uniform`` (they attend
        everywhere alike, as in the released code); of greedy answers, only while they are written.
    recall_prompts
        Number of prompts of multi-query recall, made with the task's seed.
    draws
        Number of random sets of as many other heads.
    seed
        Seed of the bootstrap over prompts and of the random sets.

    Returns
    -------
    Dataset with ``retrieval_set`` (layer, head; 0 to 1), ``retrieval_multiset`` (layer, head; from
    0, may exceed 1), ``recall`` (layer, head; share of weight), each with 95 % intervals over
    prompts; ``retrieval_share`` (percent of heads above the threshold), ``recalled`` (share of
    the needle that the model generates), ``needle_accuracy`` and ``recall_accuracy``
    (condition). The retrieval scores are missing where the model recalls no needle.
    """
    sets, multisets, recalled = _score(capture, model, task, decoding, new_tokens)
    counted = recalled > least_recalled
    rule = _needle_steps.DECODINGS[decoding].format(
        least=percent(least_recalled), new_tokens=new_tokens
    )
    convention = f"{rule} ({int(counted.sum())} of {len(counted)})"
    results = Results(capture, seed=seed, source=SOURCE)
    forms = _needle_steps.FORMS.items()
    for (name, (high, formula)), scores in zip(forms, (sets, multisets), strict=True):
        kept = np.where(counted[:, None, None], scores, np.nan)
        results.add_mean(
            f"retrieval_{name}", GRID, kept, f"Retrieval score ({name})", "share of the needle",
            "sequential", 0, high, convention=f"{formula}; {convention}",
        )  # fmt: skip

    recall_task, capacity = recall_capacity.draw(model, recall_prompts, task.seed)
    captured = capture_prompts(model, recall_task, stats=("target_mass",), targets=("evidence",))
    results.add_mean(
        "recall", GRID, _needle_steps.evidence_weight(captured),
        "Weight on the stated value when it is asked for", *SHARE, source="Zoology 2312.04927",
        convention=f"mean over the questions of {recall_prompts} prompts of multi-query recall",
    )  # fmt: skip

    score, weight = results[f"retrieval_{form}"].values, results["recall"].values
    passed = score > threshold
    scored = bool(counted.any())
    results.add(
        "retrieval_share", (), passed[attending(capture)].mean() * 100 if scored else np.nan,
        "Share of heads above the threshold", "%", "sequential", 0, 100,
        convention=f"mean {form} score > {threshold:g}; {convention}",
    )  # fmt: skip
    results.add_mean(
        "recalled", (), recalled, "Part of the needle that the model generates", *SHARE,
        convention=f"mean over all {len(recalled)} prompts; {rule}",
    )  # fmt: skip

    pool = heads(capture)
    answered = _head_masking.measure(model, task, masking, decoding, new_tokens)
    plain = _head_masking.measure(model, recall_task, "zero", "teacher_forced", new_tokens)
    checks = {
        "needle": (task, score if scored else weight, answered),
        "recall": (recall_task, weight, plain),
    }
    outcomes: list[Verdict] = []
    records: dict[str, Any] = {}
    for name, (subject, ranking, (measure, title, meaning)) in checks.items():
        checked, conditions, record = causal_check.check(
            f"{name}_accuracy", f"{title[0].upper()}{title[1:]} on {subject.name}",
            model, subject,
            above(ranking, threshold, len(pool) // 2), pool,
            kind="retrieval" if name == "needle" and scored else "recall",
            draws=draws, seed=seed, measure=measure, score=title, ablation=meaning,
        )  # fmt: skip
        results.variables |= checked
        records[name] = record
        outcomes.append(Verdict(record["verdict"], f"{subject.name}: {record['note']}"))
    # Both checks share one axis, so their conditions carry the same names.
    conditions[1] = "top heads ablated"
    result = results.dataset(
        {"condition": conditions},
        convention=convention,
        heads_by_type={
            "retrieval": named(score, passed),
            "recall": named(weight, weight > threshold),
        },
        causal=records,
        note="" if scored else UNSCORED,
        verdict=outcomes[0] & outcomes[1],
    )
    if capacity is not None:
        capacity.state(result)
    return result


def _score(
    capture: xr.Dataset, model: Model, task: Task, decoding: str, new_tokens: int
) -> tuple[Array, Array, Array]:
    """Return what heads copy at the decode steps: set and multiset scores, share recalled."""
    model.check_predicts()
    encoded = encode(task, model.tokenizer, model.bos)
    require_prompts(capture, len(encoded.ids))
    if not all(any(question.evidence for question in row) for row in encoded.questions):
        raise NotApplicable("evidence: a prompt names none; give the positions of the answer")
    scores = [
        _needle_steps.score(model, ids, row, decoding, new_tokens)
        for ids, row in zip(encoded.ids, encoded.questions, strict=True)
    ]
    sets, multisets, recalled, _ = map(np.stack, zip(*scores, strict=True))
    return sets, multisets, recalled

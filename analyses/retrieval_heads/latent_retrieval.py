"""Latent retrieval: does the model retrieve by meaning and in steps, or copy what matches?

The same kind of fact is asked for by its own key (literal), by a word that goes with the key
(associative), over two facts of which one names the key of the other (thread), and step by step
along that thread. What the model cannot answer has no head score; what it can has the weight of
every head on the fact that decides it, and an ablation of the best heads beside it.

Sources: NoLiMa, for literal against associative needles; Needle Threading, for threads.
"""

from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions import causal_check
from headscope.analyses._interventions.ablation import evaluate
from headscope.analyses._runtime.options import AtLeast, Between
from headscope.analyses._runtime.results import SHARE, ZERO_TO_ONE, Results, heads, label, top
from headscope.analyses._runtime.verdict import Verdict
from headscope.analyses._stats.bootstrap import bootstrap
from headscope.analyses.retrieval_heads._needle_steps import decode_steps, evidence_weight
from headscope.kernels.formatting import amount
from headscope.probes import capture
from headscope.probes.models.model import Model
from headscope.probes.prompts import tasks
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tokens import encode

NEEDS = ()
QUICK = {"pairs": 3, "best": 1, "draws": 1}
SUPPORTS = {"hybrid"}
TASK = "associative"
PROMPTS = 16

SOURCE = "NoLiMa; Needle Threading"
KINDS = ("literal", "associative", "thread", "thread, step by step")
MISTAKES = ("another stated value", "one step too short")


def run(
    model: Model,
    task: Task,
    *,
    pairs: Annotated[int, AtLeast(2)] = 4,
    hops: Annotated[int, AtLeast(2)] = 2,
    least_solved: Annotated[float, Between(0, 1)] = 0.5,
    best: Annotated[int, AtLeast(1)] = 5,
    draws: Annotated[int, AtLeast(1)] = 3,
    seed: int = 0,
) -> xr.Dataset:
    """Measure accuracy on literal, associative and threaded facts, and score heads where it holds.

    Parameters
    ----------
    task
        The associative prompts (your own, or the task ``associative``); the other kinds are made
        with its seed, as many of each.
    pairs
        Facts in a literal prompt.
    hops
        Facts in a thread, of which there are two in a prompt.
    least_solved
        Accuracy below which a kind has no head score; nor has one whose interval reaches chance,
        that of naming any stated value.
    best
        Heads with the largest weight on the deciding facts, ablated in the causal checks; half of
        all at most.
    draws
        Random sets of as many other heads.
    seed
        Seed of the random sets and of the bootstrap.

    Returns
    -------
    Dataset with ``accuracy`` (kind, condition; intact, and the causal check where it is solved),
    ``mistakes`` (kind, mistake; share of answers), ``evidence`` (kind, layer, head; share of weight
    on the deciding fact when it is asked for; missing where the kind is not solved) and
    ``looked_at`` (the same, solved or not), with 95 % intervals over prompts.
    """
    model.check_predicts()
    count = len(task)
    subjects = _subjects(model, task, pairs, hops)
    captures = {
        kind: capture(model, subject, stats=("target_mass",), targets=("evidence",))
        for kind, subject in subjects.items()
    }
    best = min(best, len(heads(captures["literal"])) // 2)
    weights = np.stack([evidence_weight(captures[kind]) for kind in KINDS], axis=1)
    scored = np.full_like(weights, np.nan)
    accuracy = np.full((len(KINDS), 3, 3), np.nan)
    wrong = [
        _mistakes(model, subject, short=kind == "thread") for kind, subject in subjects.items()
    ]
    records: dict[str, dict[str, Any]] = {}
    named: dict[str, list[str]] = {}
    notes: list[str] = []
    verdict: Verdict | None = None
    for at, (kind, subject) in enumerate(subjects.items()):
        reached = evaluate(model, subject, metric="accuracy")
        mean, low, high = (float(end) for end in bootstrap(reached, seed=seed))
        chance = _chance(subject)
        if mean < least_solved or low <= chance:
            accuracy[at, 0] = mean, low, high
            notes.append(
                f"{kind}: not solved, accuracy {amount(mean)} ({amount(low)} to "
                f"{amount(high)}, chance {amount(chance)}), so no head is scored."
            )
        else:
            scored[:, at] = weights[:, at]
            ranked = top(weights[:, at].mean(0), best)
            named[kind] = [label(head) for head in ranked]
            checked, _, record = causal_check.check(
                "accuracy", kind, model, replace(subject, name=kind), ranked,
                heads(captures[kind]), kind=kind, draws=draws, seed=seed,
            )  # fmt: skip
            ends = [checked[f"accuracy{end}"].values for end in ("", "_lower", "_upper")]
            accuracy[at] = np.stack(ends, axis=-1)
            records[kind] = record
            outcome = Verdict(record["verdict"], f"{kind}: {record['note']}")
            verdict = outcome if verdict is None else verdict & outcome

    convention = (
        f"{count} prompts of each kind; literal and associative: {pairs} facts, threads: two of "
        f"{hops} facts; step by step: every step is asked, after the right ones before it"
    )
    solved = f"missing where accuracy is below {least_solved:g} or not above chance"
    results = Results(captures["associative"], seed=seed, source=SOURCE, convention=convention)
    results.add_interval(
        "accuracy", ("kind", "condition"), np.moveaxis(accuracy, -1, 0),
        "Accuracy by how the fact is asked for", "share of answers", *ZERO_TO_ONE,
        evidence="causal", convention=f"{convention}; zero ablation of the {best} heads with the "
        "largest weight on the deciding fact, or of as many random others (mean of "
        f"{draws} sets); {solved}",
    )  # fmt: skip
    grid = ("kind", "layer", "head")
    results.add_means(
        ("mistakes", ("kind", "mistake"), np.stack(wrong, axis=1),
         "Wrong answers, by what is said instead", ("share of answers", *ZERO_TO_ONE),
         f"{convention}; one step too short: the key that the first fact of the thread names"),
        ("evidence", grid, scored, "Weight on the fact that decides, where it is answered", SHARE,
         f"{convention}; {solved}"),
        ("looked_at", grid, weights, "Weight on the fact that decides, answered or not", SHARE,
         f"{convention}; no retrieval score where the kind is not solved"),
    )  # fmt: skip
    return results.dataset(
        {
            "kind": list(KINDS),
            "condition": ["intact", "best heads ablated", "random other heads ablated"],
            "mistake": list(MISTAKES),
        },
        heads_by_type=named,
        causal=records,
        note=" ".join(notes),
        verdict=verdict,
    )


def _subjects(model: Model, task: Task, pairs: int, hops: int) -> dict[str, Task]:
    """Make the prompts of every kind."""
    count, seed, tokenizer = len(task), task.seed, model.tokenizer
    literal = tasks.make("associative", tokenizer, count, seed, pairs=pairs, literal=True)
    threads = [
        tasks.make("thread", tokenizer, count, seed, hops=hops, spelled=spelled)
        for spelled in (False, True)
    ]
    return dict(zip(KINDS, (literal, task, *threads), strict=True))


def _chance(task: Task) -> float:
    """Return the chance of naming an answer among the stated values, mean over the questions.

    The wrong answers of a question are the other stated values, and one of the corrupted prompt.
    """
    questions = [question for prompt in task.prompts for question in prompt.questions]
    return float(np.mean([1 / max(len(question.wrong), 2) for question in questions]))


def _mistakes(model: Model, task: Task, *, short: bool) -> NDArray[np.float64]:
    """Return the share of answers that are each mistake (prompt, mistake)."""
    encoded = encode(task, model.tokenizer, model.bos)
    shares = []
    for ids, questions, spans in zip(encoded.ids, encoded.questions, encoded.spans, strict=True):
        _, answers = decode_steps(model, ids, questions)
        step = {ids[spans["thread"][0][0]]} if short else set()
        other = [
            token in question.wrong_ids and token not in step
            for token, question in zip(answers, questions, strict=True)
        ]
        near = [int(token) in step for token in answers]
        shares.append([np.mean(other), np.mean(near) if short else np.nan])
    return np.asarray(shares, dtype=np.float64)

"""Literal or not: does the model retrieve by meaning and over several steps, or copy what matches?

The same kind of fact is asked for by its own key (literal), by a word that goes with the key
(associative), over two facts of which one names the key of the other (thread), and step by step
along that thread. What the model cannot answer has no head score; what it can has the weight of
every head on the fact that decides it, and an ablation of the best heads beside it.

Sources: NoLiMa, for literal against associative needles; Needle Threading, for threads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from headscope.analyses._interventions import causal_check
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import averaged, dataset, heads, interval, label, top
from headscope.analyses._stats.bootstrap import bootstrap

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

NEEDS = ()
TASK = "associative"
PROMPTS = 16

SOURCE = "NoLiMa; Needle Threading"
KINDS = ("literal", "associative", "thread", "thread, step by step")
MISTAKES = ("another stated value", "one step too short")


def run(
    model: Model,
    task: Task,
    *,
    pairs: int = 4,
    hops: int = 2,
    least_solved: float = 0.5,
    best: int = 5,
    draws: int = 3,
    seed: int = 0,
    progress: causal_check.Progress | None = None,
) -> xr.Dataset:
    """Measure accuracy on literal, associative and threaded facts, and score heads where it holds.

    Parameters
    ----------
    model
        Model that answers.
    task
        The associative prompts (your own, or the task ``associative``); the other kinds are made
        with its seed, as many of each.
    pairs
        Facts in a literal prompt.
    hops
        Facts in a thread, of which there are two in a prompt.
    least_solved
        Accuracy below which a kind has no head score.
    best
        Heads with the largest weight on the deciding facts, ablated in the causal checks; half of
        all at most.
    draws
        Random sets of as many other heads.
    seed
        Seed of the random sets and of the bootstrap.
    progress
        Called with (done, total) ablations of each kind that is solved.

    Returns
    -------
    Dataset with ``accuracy`` (kind, condition; intact, and the causal check where it is solved),
    ``mistakes`` (kind, mistake; share of answers), ``evidence`` (kind, layer, head; share of weight
    on the deciding fact when it is asked for; missing where the kind is not solved) and
    ``looked_at`` (the same, solved or not), with 95 % intervals over prompts.

    Raises
    ------
    HeadscopeError
        When an option is out of range or a prompt does not fit the model.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> result = execute("latent_retrieval", model, n=2, options={"draws": 1})
    >>> result["accuracy"].dims
    ('kind', 'condition')
    """
    from headscope.analyses._interventions.ablation import evaluate
    from headscope.probes import capture
    from headscope.probes.prompts import tasks

    model.check_predicts()
    for name, value, least in (
        ("pairs", pairs, 2), ("hops", hops, 2), ("best", best, 1), ("draws", draws, 1),
    ):  # fmt: skip
        options.at_least(name, value, least)
    options.between("least_solved", least_solved, 0, 1)
    count, tokenizer = len(task), model.tokenizer

    def thread(spelled: bool) -> Task:
        return tasks.make("thread", tokenizer, count, task.seed, hops=hops, spelled=spelled)

    subjects = dict(
        zip(
            KINDS,
            (
                tasks.make(
                    "associative", tokenizer, count, task.seed, pairs=pairs, literal=True
                ),
                task,
                thread(False),
                thread(True),
            ),
            strict=True,
        )
    )  # fmt: skip
    asked = {
        kind: capture(model, each, stats=("target_mass",), targets=("evidence",))
        for kind, each in subjects.items()
    }
    best = min(best, len(heads(asked["literal"])) // 2)
    shape = tuple(asked["literal"].sizes[dim] for dim in ("layer", "head"))
    weights = np.full((count, len(KINDS), *shape), np.nan)
    scored = weights.copy()
    rows = np.full((len(KINDS), 3, 3), np.nan)
    wrong = np.full((count, len(KINDS), len(MISTAKES)), np.nan)
    records: dict[str, object] = {}
    listed: dict[str, list[str]] = {}
    notes = []
    for at, (kind, subject) in enumerate(subjects.items()):
        wrong[:, at] = _mistakes(model, subject, short=kind == "thread")
        mass = asked[kind]["target_mass"].sel(target="evidence")
        mass = mass.transpose("prompt", "layer", "head", "query").mean("query", skipna=True)
        weights[:, at] = mass.values
        reached = evaluate(model, subject, metric="accuracy")
        if reached.mean() < least_solved:
            mean, low, high = (float(end) for end in bootstrap(reached, seed=seed))
            rows[at, 0] = mean, low, high
            notes.append(f"{kind}: not solved, accuracy {mean:.2f} ({low:.2f} to {high:.2f}), "
                         "so no head is scored.")  # fmt: skip
            continue
        scored[:, at] = weights[:, at]
        ranked = top(weights[:, at].mean(0), best)
        listed[kind] = [label(head) for head in ranked]
        found, _, record = causal_check.check(
            "accuracy", kind, model, replace(subject, name=kind), ranked, heads(asked[kind]),
            kind=kind, draws=draws, seed=seed, progress=progress,
        )  # fmt: skip
        rows[at] = np.stack(
            [found[f"accuracy{end}"].values for end in ("", "_lower", "_upper")], axis=-1
        )
        records[kind] = record
        notes.append(f"{kind}: {record['note']}")

    said = (
        f"{count} prompts of each kind; literal and associative: {pairs} facts, threads: two of "
        f"{hops} facts; step by step: every step is asked, after the right ones before it"
    )
    solved = f"missing where accuracy is below {least_solved:g}"
    variables = interval(
        "accuracy", ("kind", "condition"), *np.moveaxis(rows, -1, 0),
        "Accuracy by how the fact is asked for", "share of answers", "sequential", 0, 1,
        source=SOURCE, evidence="causal",
        convention=f"{said}; zero ablation of the {best} heads with the largest weight on the "
        f"deciding fact, or of as many random others (mean of {draws} sets); {solved}",
    )  # fmt: skip
    variables |= averaged(
        "mistakes", ("kind", "mistake"), wrong, "Wrong answers, by what is said instead",
        "share of answers", "sequential", 0, 1, seed=seed, source=SOURCE,
        convention=f"{said}; one step too short: the key that the first fact of the thread names",
    )  # fmt: skip
    for name, values, title, limits in (
        ("evidence", scored, "Weight on the fact that decides, where it is answered", solved),
        ("looked_at", weights, "Weight on the fact that decides, answered or not",
         "no retrieval score where the kind is not solved"),
    ):  # fmt: skip
        variables |= averaged(
            name, ("kind", "layer", "head"), values, title, "share", "sequential", 0, 1,
            seed=seed, convention=f"{said}; {limits}", source=SOURCE,
        )  # fmt: skip
    return dataset(
        asked["associative"],
        variables,
        {
            "kind": list(KINDS),
            "condition": ["intact", "best heads ablated", "random other heads ablated"],
            "mistake": list(MISTAKES),
        },
        convention=said,
        heads_by_type=listed,
        causal=records,
        note=" ".join(notes),
    )


def _mistakes(model: Model, task: Task, *, short: bool) -> NDArray[np.float64]:
    """Return the share of answers that are each mistake (prompt, mistake)."""
    from headscope.analyses.retrieval_heads._needle_steps import look
    from headscope.probes.prompts.tokens import encode

    encoded = encode(task, model.tokenizer)
    found = []
    for ids, asked, roles in zip(encoded.ids, encoded.questions, encoded.roles, strict=True):
        _, said = look(model, ids, asked)
        step = {ids[roles["thread"][0]]} if short else set()
        other = [
            token in each.wrong_ids and token not in step
            for token, each in zip(said, asked, strict=True)
        ]
        near = [int(token) in step for token in said]
        found.append([np.mean(other), np.mean(near) if short else np.nan])
    return np.asarray(found, dtype=np.float64)

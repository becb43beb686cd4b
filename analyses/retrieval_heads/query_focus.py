"""Query-focused heads: heads whose attention to a document depends on the question.

The question's tokens send a head's attention to the documents of the context; so does a question
without content ("N/A"). What the first adds to the second, summed over the document that holds the
answer, is the head's score. Summed over the best heads it ranks the documents, which is tried on
prompts that the heads were not chosen on, and the heads are ablated.

Source: Zhang et al., Query-Focused Retrieval Heads (2506.09944).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from headscope.analyses._interventions import causal_check
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import averaged, dataset, heads, interval, label, top
from headscope.analyses._stats.bootstrap import bootstrap, crossed
from headscope.kernels.errors import InvalidInput, NotApplicable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

NEEDS = ()
TASK = "recall"
PROMPTS = 16

SOURCE = "QRHead 2506.09944"
RANKERS = ("best heads", "all heads", "random other heads")


def run(
    model: Model,
    task: Task,
    *,
    null_query: str = "N/A",
    query_words: int = 2,
    best: int = 5,
    draws: int = 5,
    seed: int = 0,
    progress: causal_check.Progress | None = None,
) -> xr.Dataset:
    """Score every head by how much more a question looks at its document than a null question.

    Parameters
    ----------
    model
        Model that reads the prompts.
    task
        Prompts whose questions name their evidence; the first question of each is used. Sentences,
        up to each full stop, are the documents.
    null_query
        Text without content that stands in the question's place.
    query_words
        Last words of the prompt that are the question.
    best
        Number of heads that rank the documents and are ablated; half of all at most.
    draws
        Random sets of as many other heads.
    seed
        Seed of the split, the random sets and the bootstrap.
    progress
        Called with (done, total) ablations.

    Returns
    -------
    Dataset with ``qr_score`` (layer, head; −1 to 1) and ``qr_plain`` (layer, head; without the null
    question), ``found`` (ranker; share of test prompts whose document ranks first) and ``accuracy``
    (condition; the causal check), with 95 % intervals over prompts.

    Raises
    ------
    HeadscopeError
        When a question names no evidence before it, there are fewer than 4 prompts or less than two
        documents, or an option is out of range.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> result = execute("query_focus", load_model("headscope/bundled"), n=4, options={"draws": 1})
    >>> result["qr_score"].dims
    ('layer', 'head')
    """
    from headscope.analyses.retrieval_heads._documents import document_scores, documents
    from headscope.probes import capture
    from headscope.probes.prompts.tasks._absent_facts import stated
    from headscope.probes.prompts.tokens import encode

    model.check_predicts()
    for name, value in (("query_words", query_words), ("best", best), ("draws", draws)):
        options.at_least(name, value, 1)
    if len(task) < 4:
        raise NotApplicable(f"n: {len(task)} prompts cannot be split; ask for 4 or more")
    null = model.tokenizer.encode(null_query, add_special_tokens=False)
    if not null:
        raise InvalidInput("null_query: it has no tokens; give a text such as N/A")
    cut = stated(task)
    encoded = encode(cut, model.tokenizer)
    ends = [len(ids) - query_words for ids in encoded.ids]
    contexts = [list(ids[:end]) for ids, end in zip(encoded.ids, ends, strict=True)]
    asked = capture(model, cut, stats=("received_last",), last=query_words)
    blank = capture(
        model, [[*context, *null] for context in contexts], stats=("received_last",), last=len(null)
    )

    ranked: list[NDArray[np.float64]] = []
    golds, scores, plains, sizes = [], [], [], []
    for row, prompt in enumerate(cut.prompts):
        places = [
            range(each.start + encoded.offset, each.stop + encoded.offset)
            for each in documents(prompt.words, len(prompt.words) - query_words)
        ]
        evidence = set(encoded.questions[row][0].evidence)
        gold = np.array([bool(evidence & set(each)) for each in places])
        if not gold.any() or len(places) < 2:
            raise NotApplicable(
                f"evidence: prompt {row + 1} of {task.name} needs two sentences or more, one of "
                "them with the answer; use recall or needle"
            )
        here, there = (
            each["received_last"].isel(prompt=row).transpose("layer", "head", "key").values
            .astype(np.float64)[..., : ends[row]]
            for each in (asked, blank)
        )  # fmt: skip
        ranked.append(document_scores(here - there, places))
        plains.append(document_scores(here, places)[gold].sum(0))
        scores.append(ranked[-1][gold].sum(0))
        golds.append(gold)
        sizes.append(len(places))

    unknown = null.count(getattr(model.tokenizer, "unk_token_id", None))
    said = (
        f"question: last {query_words} words; null question: {null_query!r}, {len(null)} tokens"
        f"{f', {unknown} of them unknown to the tokenizer' if unknown else ''}; documents: the "
        f"sentences of {len(cut)} prompts of {task.name}"
    )
    grid = ("layer", "head")
    rule = "Σ over the gold document, tokens at or below mean − 2 std (ddof 1) left out"
    variables = averaged(
        "qr_score", grid, np.stack(scores), "Query-focused retrieval score (QRHead)", "share",
        "diverging", -1, 1, seed=seed, convention=f"{rule}, null question subtracted; {said}",
        source=SOURCE,
    )  # fmt: skip
    variables |= averaged(
        "qr_plain", grid, np.stack(plains), "Weight of the question on its document", "share",
        "sequential", 0, 1, seed=seed, convention=f"{rule}, nothing subtracted; {said}",
        source=SOURCE,
    )  # fmt: skip

    order = np.random.default_rng(seed).permutation(len(cut))
    train, test = order[: len(cut) // 2], order[len(cut) // 2 :]
    every = heads(asked)
    best = min(best, len(every) // 2)
    chosen = top(np.mean([scores[row] for row in train], axis=0), best)
    rest = [head for head in every if head not in chosen]
    sets = causal_check.random_sets(rest, best, draws, seed)

    def first(group: list[tuple[int, int]] | tuple[tuple[int, int], ...]) -> NDArray[np.float64]:
        layers, columns = zip(*group, strict=True)
        hits = []
        for row in test:
            sums = np.nan_to_num(ranked[row][:, layers, columns]).sum(1)
            hits.append(float(golds[row][int(sums.argmax())]))
        return np.asarray(hits)

    measured = [
        bootstrap(first(chosen), seed=seed),
        bootstrap(first(every), seed=seed),
        crossed(np.stack([first(each) for each in sets]), seed=seed),
    ]
    mean, lower, upper = np.asarray(measured, dtype=np.float64).T
    variables |= interval(
        "found", ("ranker",), mean, lower, upper, "Questions whose document ranks first",
        "share of prompts", "sequential", 0, 1, source=SOURCE,
        convention=f"summed scores of the heads; the {best} best chosen on {len(train)} prompts, "
        f"tried on {len(test)} others; by chance {np.mean(1 / np.asarray(sizes)):.2f}",
    )  # fmt: skip
    overall = variables["qr_score"].values
    checked, conditions, record = causal_check.check(
        "accuracy", f"Accuracy on {task.name}", model, cut, top(overall, best), every,
        kind="query-focused", draws=draws, seed=seed, progress=progress,
    )  # fmt: skip
    return dataset(
        asked,
        variables | checked,
        {"ranker": list(RANKERS), "condition": conditions},
        convention=said,
        heads_by_type={"query-focused": [label(head) for head in top(overall, best)]},
        causal={"query-focused": record},
        note=f"The {best} best heads find the document of {mean[0]:.0%} of the test questions, "
        f"random others of {mean[2]:.0%}. {record['note']}",
    )

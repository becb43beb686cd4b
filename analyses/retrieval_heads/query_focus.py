"""Query-focused heads: heads whose attention to a document depends on the question.

The question's tokens send a head's attention to the documents of the context; so does a question
without content ("N/A"). What the first adds to the second, summed over the document that holds the
answer, is the head's score. Summed over the best heads it ranks the documents, which is tried on
prompts that the heads were not chosen on, and the heads are ablated.

Source: Zhang et al., Query-Focused Retrieval Heads (2506.09944).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions import causal_check
from headscope.analyses._interventions.causal_check import Head
from headscope.analyses._runtime.options import AtLeast
from headscope.analyses._runtime.results import GRID, SHARE, ZERO_TO_ONE, Results, heads, label, top
from headscope.analyses._runtime.verdict import Verdict
from headscope.analyses._stats.bootstrap import Array, bootstrap, crossed
from headscope.analyses.retrieval_heads._documents import document_scores, documents
from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.kernels.formatting import amount, percent
from headscope.probes import capture
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tasks._absent_facts import with_stated_fact
from headscope.probes.prompts.tokenized_text import tokenize
from headscope.probes.prompts.tokens import EncodedTask, encode

NEEDS = ()
QUICK = {"query_words": 1, "best": 1, "draws": 2, "null_query": "nothing"}
SUPPORTS = {"hybrid"}
TASK = "recall"
PROMPTS = 16

SOURCE = "QRHead 2506.09944"
RANKERS = ("best heads", "all heads", "random other heads")


def run(
    model: Model,
    task: Task,
    *,
    null_query: str = "N/A",
    query_words: Annotated[int, AtLeast(0)] = 0,
    best: Annotated[int, AtLeast(1)] = 5,
    draws: Annotated[int, AtLeast(1)] = 5,
    seed: int = 0,
) -> xr.Dataset:
    """Score every head by how much more a question attends to its document than a null question.

    Parameters
    ----------
    task
        Four prompts or more whose questions name their evidence; the first question of each is
        used. Sentences, up to each full stop, are the documents.
    null_query
        Text without content that stands in the question's place.
    query_words
        Last tokens of the prompt that are the question; 0 takes all behind the last full stop (of
        the longest question).
    best
        Number of heads that rank the documents and are ablated; half of all at most.
    draws
        Random sets of as many other heads.
    seed
        Seed of the split, the random sets and the bootstrap.

    Returns
    -------
    Dataset with ``qr_score`` (layer, head; −1 to 1) and ``qr_plain`` (layer, head; without the null
    question), ``found`` (ranker; share of test prompts whose document ranks first) and ``accuracy``
    (condition; the causal check), with 95 % intervals over prompts.
    """
    model.check_predicts()
    if len(task) < 4:
        raise NotApplicable(f"n: {len(task)} prompts cannot be split; ask for 4 or more")
    null = model.tokenizer.encode(null_query, add_special_tokens=False)
    if not null:
        raise InvalidInput("null_query: it has no tokens; give a text such as N/A")
    cut = with_stated_fact(task)
    encoded = encode(cut, model.tokenizer, model.bos)
    sentences = _sentences(cut, model)
    question_length = query_words or max(len(row[-1]) for row in sentences)
    contexts = [[*ids[: len(ids) - question_length], *null] for ids in encoded.ids]
    question = capture(model, cut, stats=("received_last",), last=question_length)
    blank = capture(model, contexts, stats=("received_last",), last=len(null))
    prompts = [
        _score(cut, encoded, row, sentences[row], question_length, question, blank)
        for row in range(len(cut))
    ]
    scores = np.stack([prompt.scores[prompt.gold].sum(0) for prompt in prompts])

    order = np.random.default_rng(seed).permutation(len(cut))
    train, test = order[: len(cut) // 2], order[len(cut) // 2 :]
    pool = heads(question)
    best = min(best, len(pool) // 2)
    chosen = top(np.mean([scores[row] for row in train], axis=0), best)
    remaining = [head for head in pool if head not in chosen]
    tested = [prompts[row] for row in test]
    by_random_heads = [
        _ranks_first(tested, group)
        for group in causal_check.random_sets(remaining, best, draws, seed)
    ]
    ranked = [
        bootstrap(_ranks_first(tested, chosen), seed=seed),
        bootstrap(_ranks_first(tested, pool), seed=seed),
        crossed(np.stack(by_random_heads), seed=seed),
    ]
    shares = np.asarray(ranked, dtype=np.float64).T

    unknown = null.count(getattr(model.tokenizer, "unk_token_id", None))
    convention = (
        f"question: last {question_length} tokens; null question: {null_query!r}, {len(null)} "
        f"tokens{f', {unknown} of them unknown to the tokenizer' if unknown else ''}; documents: "
        f"the sentences of {len(cut)} prompts of {task.name}"
    )
    rule = "Σ over the gold document, tokens at or below mean − 2 std (ddof 1) left out"
    results = Results(question, seed=seed, source=SOURCE, convention=convention)
    results.add_means(
        ("qr_score", GRID, scores, "Query-focused retrieval score (QRHead)",
         ("share", "diverging", -1, 1), f"{rule}, null question subtracted; {convention}"),
        ("qr_plain", GRID, np.stack([prompt.plain for prompt in prompts]),
         "Weight of the question on its document", SHARE,
         f"{rule}, nothing subtracted; {convention}"),
    )  # fmt: skip
    chance = float(np.mean([1 / len(prompt.gold) for prompt in prompts]))
    results.add_interval(
        "found", ("ranker",), shares, "Questions whose document ranks first", "share of prompts",
        *ZERO_TO_ONE, convention=f"summed scores of the heads; the {best} best chosen on "
        f"{len(train)} prompts, tried on {len(test)} others; by chance {amount(chance)}",
    )  # fmt: skip
    focused = top(results["qr_score"].values, best)
    checked, conditions, record = causal_check.check(
        "accuracy", f"Accuracy on {task.name}", model, cut, focused, pool,
        kind="query-focused", draws=draws, seed=seed,
    )  # fmt: skip
    results.variables |= checked
    return results.dataset(
        {"ranker": list(RANKERS), "condition": conditions},
        heads_by_type={"query-focused": [label(head) for head in focused]},
        causal={"query-focused": record},
        note=f"The {best} best heads find the document of {percent(shares[0][0])} of the test "
        f"questions, random others of {percent(shares[0][2])}.",
        verdict=Verdict(record["verdict"], record["note"]),
    )


@dataclass(frozen=True)
class _Prompt:
    """Scores of one prompt's documents, and which of them holds the answer.

    ``scores`` (document, layer, head) are less the null question's, ``plain`` (layer, head) is the
    weight on the gold document, ``gold`` (document,).
    """

    scores: Array
    plain: Array
    gold: NDArray[np.bool_]


def _sentences(task: Task, model: Model) -> list[list[tuple[int, ...]]]:
    """Return the token positions of every sentence of every prompt."""
    texts = [prompt.clean for prompt in task.prompts if isinstance(prompt.clean, str)]
    if len(texts) < len(task):
        raise NotApplicable(
            f"task: the prompts of {task.name} are tokens without sentences; use recall or needle"
        )
    tokenized = tokenize(model.tokenizer, texts, model.bos)
    return [
        [text.positions(span) for span in documents(clean)]
        for clean, text in zip(texts, tokenized, strict=True)
    ]


def _score(
    task: Task,
    encoded: EncodedTask,
    row: int,
    sentences: Sequence[Sequence[int]],
    question_length: int,
    question: xr.Dataset,
    blank: xr.Dataset,
) -> _Prompt:
    """Score the documents of one prompt in every head."""
    end = len(encoded.ids[row]) - question_length
    before_question = [[at for at in document if at < end] for document in sentences]
    positions = [document for document in before_question if document]
    evidence = set(encoded.questions[row][0].evidence)
    gold = np.array([bool(evidence & set(span)) for span in positions])
    if not gold.any() or len(positions) < 2:
        raise NotApplicable(
            f"evidence: prompt {row + 1} of {task.name} needs two sentences or more, one of "
            "them with the answer; use recall or needle"
        )
    order = ("layer", "head", "key")
    weights, null_weights = (
        captured["received_last"].isel(prompt=row).transpose(*order).values[..., :end].astype(float)
        for captured in (question, blank)
    )
    plain = document_scores(weights, positions)[gold].sum(0)
    return _Prompt(document_scores(weights - null_weights, positions), plain, gold)


def _ranks_first(prompts: Sequence[_Prompt], group: Sequence[Head]) -> Array:
    """Return whether a group of heads ranks the gold document first (prompt,)."""
    layers, columns = zip(*group, strict=True)
    hits = []
    for prompt in prompts:
        sums = np.nan_to_num(prompt.scores[:, layers, columns]).sum(1)
        hits.append(float(prompt.gold[int(sums.argmax())]))
    return np.asarray(hits)

"""Weight relations: which relations between words a head's weights hold, without any text.

A head's value and output weights, between the embedding and the unembedding, map every word to
logits of all others: M = W_E' W_V W_O W_U. A head has a relation where M puts the right word among
the first for its source: the capital for a country, the plural for a noun, the word itself for a
head that copies. On −M the same pairs find heads that suppress it. The null are targets of other
pairs, shuffled many times: a head that raises all capitals whatever the country has no relation.
What it writes most from, among all words, describes a head. Weights say what a head would write if
it attended to a word, not whether it does: no number here is causal, and vocabulary has heads that
copy in a text, with what the task loses without them.

Source: Elhelo & Geva, Inferring Functionality of Attention Heads from their Parameters (MAPS,
2412.11965).
"""

from typing import Annotated

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._measurements import relation_words, word_tokens
from headscope.analyses._measurements.vocabulary_map import VocabularyMap
from headscope.analyses._runtime.options import AtLeast
from headscope.analyses._runtime.results import (
    GRID,
    ZERO_TO_ONE,
    Results,
    first_few,
    label,
    require,
    top,
)
from headscope.analyses._runtime.verdict import Verdict
from headscope.analyses._stats.bootstrap import LEVEL, Array
from headscope.kernels.formatting import amount
from headscope.probes.models.model import Model

NEEDS = ()
SUPPORTS = {"hybrid"}
QUICK = {"pairs": 30, "shuffles": 500}

SOURCE = "MAPS 2412.11965"
UNITS = ("share of pairs", *ZERO_TO_ONE)
# Heads that the note names of a relation, its pairs that are shown, and those of a description.
NAMED, SHOWN, DESCRIBED = 3, 4, 6
# What follows the name of a relation, and the sign of the map.
KINDS = {"": "", "_suppression": "−"}


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    k: Annotated[int, AtLeast(1)] = 10,
    pairs: Annotated[int, AtLeast(relation_words.LEAST_PAIRS)] = 40,
    shuffles: Annotated[int, AtLeast(500)] = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Score every head by the relations between words that its weights hold.

    Parameters
    ----------
    capture, model
        Any capture of the model, for its provenance; its prompts do not matter.
    k
        Among how many first words of a row the target must be; 1 where a word is to be copied.
    pairs
        Pairs of a relation, drawn from its list; a relation with fewer than 30 whose words are one
        token each is left out, and ``left_out`` says so.
    shuffles
        Times that targets are shuffled among the pairs of a relation.
    seed
        Seed of the pairs, the shuffles and the bootstrap.

    Returns
    -------
    Dataset with a variable for every relation, such as ``country_capital`` (layer, head; share of
    its pairs, 0 to 1, with a 95 % interval over pairs), and ``<relation>_suppression``, the same on
    −M. The attribute ``null`` is by how much a score must exceed the mean of the head's own
    shuffled scores: what in 95 % of all shuffles no head of no relation reaches.
    ``heads_by_relation`` names the heads that do, ``examples`` has pairs that the first of them
    holds, and ``descriptions`` the words that it writes most from, with what it makes of them:
    both ends are chosen among the tokens that are words.
    """
    require(capture, NEEDS, "weight_relations")
    model.check_predicts()
    relations, left_out = relation_words.relations(model)
    generator = np.random.default_rng(seed)
    drawn_pairs = {
        name: [word_pairs[at] for at in generator.permutation(len(word_pairs))[:pairs]]
        for name, word_pairs in relations.items()
    }
    map_ = VocabularyMap(model)
    hits, logits = _score(map_, drawn_pairs, k)

    results = Results(capture, seed=seed, source=SOURCE)
    named: dict[str, list[str]] = {}
    examples: dict[str, str] = {}
    described: list[tuple[int, int]] = []
    sentences = []
    for name, word_pairs in drawn_pairs.items():
        for kind, sign in KINDS.items():
            title = name.replace("_", " ") + (", suppressed" if kind else "")
            own_hits = np.diagonal(hits[f"{name}{kind}"]).transpose(2, 0, 1)
            excess, null = _null(hits[f"{name}{kind}"], shuffles, len(hits), generator)
            results.add_mean(
                f"{name}{kind}", GRID, own_hits, f"Pairs of {title}", *UNITS, null=null,
                convention=f"target among the first {_first(name, k)} of the source's row of "
                f"{sign}M; {len(word_pairs)} pairs; {shuffles} shuffles of their targets ask for "
                f"{amount(null)} above the head's own mean of them",
            )  # fmt: skip
            score = results[f"{name}{kind}"].values
            heads = top(np.where(excess > null, score, np.nan), score.size)
            if not heads:
                continue
            named[f"{name}{kind}"] = [label(head) for head in heads]
            scored = [f"{label(head)} {amount(score[head])}" for head in heads]
            sentences.append(f"{title}: {first_few(scored, NAMED)}.")
            if not kind:
                held_rows = np.flatnonzero(own_hits[:, *heads[0]])
                strongest = held_rows[
                    np.argsort(-logits[name][held_rows, *heads[0]], kind="stable")
                ]
                held_pairs = _pairs(model, [word_pairs[at] for at in strongest[:SHOWN]])
                examples[name] = f"{label(heads[0])}: {held_pairs}"
                described.append(heads[0])
    words = word_tokens.word_tokens(model) if described else []
    descriptions = {
        label(head): _pairs(model, map_.salient(*head, words, DESCRIBED))
        for head in dict.fromkeys(described)
    }
    note = " ".join(f"{head} writes most from {words}." for head, words in descriptions.items())
    if left_out:
        note += f" Left out, too few pairs of single tokens: {', '.join(left_out)}."
    return results.dataset(
        verdict=_verdict(sentences, list(drawn_pairs)),
        note=note.strip(),
        heads_by_relation=named,
        examples=examples,
        descriptions=descriptions,
        left_out=left_out,
    )


def _score(
    map_: VocabularyMap, drawn_pairs: dict[str, list[tuple[int, int]]], k: int
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return which sources and targets of every relation a head raises or lowers most.

    Returns this of every source with every target (source, target, layer, head), and the logits of
    the pairs (pair, layer, head).
    """
    shape = (map_.model.layers, map_.model.heads)
    hits = {
        f"{name}{kind}": np.full((len(word_pairs), len(word_pairs), *shape), np.nan)
        for name, word_pairs in drawn_pairs.items()
        for kind in KINDS
    }
    logits = {
        name: np.full((len(word_pairs), *shape), np.nan) for name, word_pairs in drawn_pairs.items()
    }
    pairs = [pair for word_pairs in drawn_pairs.values() for pair in word_pairs]
    sources, targets = zip(*pairs, strict=True)
    for layer, head, rows in map_.rows(sources, targets, k + 1):
        start = 0
        for name, word_pairs in drawn_pairs.items():
            part = slice(start, start := start + len(word_pairs))
            first = _first(name, k)
            marks_by_kind = (rows.among_largest(first), rows.among_smallest(first))
            for kind, marks in zip(KINDS, marks_by_kind, strict=True):
                hits[f"{name}{kind}"][..., layer, head] = marks[part, part]
            logits[name][:, layer, head] = rows.logits.diagonal()[part]
    return hits, logits


def _first(name: str, k: int) -> int:
    return 1 if name.endswith("copying") else k


def _null(
    hits: NDArray[np.float64], shuffles: int, tests: int, generator: np.random.Generator
) -> tuple[Array, float]:
    """Return by how much heads (layer, head) exceed their shuffled scores, and the null of it.

    ``hits`` tells of every source and every target of a relation whether the target is among the
    first (source, target, layer, head). The level is shared among the ``tests``.
    """
    permutations = relation_words.shuffled(len(hits), shuffles, generator)
    sources = np.arange(len(hits))
    drawn = np.stack([hits[sources, permutation].mean(0) for permutation in permutations])
    mean = drawn.mean(0)
    excess = np.diagonal(hits).mean(-1) - mean
    largest = np.nanmax(drawn - mean, axis=(1, 2))
    null = np.quantile(largest, 1 - (1 - LEVEL) / tests, method="higher")
    return excess, float(null)


def _pairs(model: Model, pairs: list[tuple[int, int]]) -> str:
    ends = (
        (model.to_str_tokens([source])[0], model.to_str_tokens([target])[0])
        for source, target in pairs
    )
    return ", ".join(f"{str(source).strip()} → {str(target).strip()}" for source, target in ends)


def _verdict(sentences: list[str], names: list[str]) -> Verdict:
    if sentences:
        return Verdict("supported", f"Above what shuffled targets reach, {' '.join(sentences)}")
    words = ", ".join(name.replace("_", " ") for name in names)
    return Verdict("not_supported", f"No head has a relation of {words} above shuffled targets.")

"""Weight relations: which relations between words a head's weights hold, by no text at all.

A head's value and output weights, between the embedding and the unembedding, map every word to
logits of all others: M = W_E' W_V W_O W_U. A head has a relation where M puts the right word among
the first for its source: the capital for a country, the plural for a noun, the word itself for a
head that copies. On −M the same pairs tell heads that suppress it. Pairs whose targets are shuffled
say what chance makes of it. Weights say what a head would write if it looked at a word, not whether
it looks: no number here is causal, and vocabulary has heads that copy in a text, with what the task
loses without them.

Source: Elhelo & Geva, Inferring Functionality of Attention Heads from their Parameters (MAPS,
2412.11965).
"""

from typing import Annotated

import numpy as np
import torch
import xarray as xr

from headscope.analyses._measurements import relation_words, vocabulary_map
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
from headscope.kernels.formatting import amount
from headscope.probes.models.model import Model

NEEDS = ()
SUPPORTS = {"hybrid"}
QUICK = {"pairs": 30, "shuffles": 2}

SOURCE = "MAPS 2412.11965"
UNITS = ("share of pairs", *ZERO_TO_ONE)
NAMED, SHOWN = 3, 4
"""Heads that the note names of a relation, and pairs that describe one."""


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    k: Annotated[int, AtLeast(1)] = 10,
    pairs: Annotated[int, AtLeast(relation_words.LEAST_PAIRS)] = 40,
    shuffles: Annotated[int, AtLeast(1)] = 5,
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
        Times that targets are shuffled; what the best head then reaches is the null.
    seed
        Seed of the pairs, the shuffles and the bootstrap.

    Returns
    -------
    Dataset with a variable for every relation, such as ``country_capital`` (layer, head; share of
    its pairs, 0 to 1, with a 95 % interval over pairs; the attribute ``null`` is the largest score
    of any head by shuffled targets), and ``<relation>_suppression``, the same on −M.
    ``heads_by_relation`` names the heads whose interval lies above the null, and ``descriptions``
    what the strongest pairs of the first of them are.
    """
    require(capture, NEEDS, "weight_relations")
    model.check_predicts()
    known, left_out = relation_words.relations(model)
    generator = np.random.default_rng(seed)
    drawn = {
        name: [each[at] for at in generator.permutation(len(each))[:pairs]]
        for name, each in known.items()
    }
    rows = [
        np.array([[target for _, target in each], *relation_words.shuffled(each, shuffles, seed)])
        for each in drawn.values()
    ]
    sources = [source for each in drawn.values() for source, _ in each]
    targets = np.concatenate(rows, axis=1)
    shape = (model.layers, model.heads)
    above, below = (np.full((*targets.shape, *shape), np.iinfo(np.int64).max) for _ in range(2))
    best, logit = np.zeros((len(sources), *shape), int), np.full((len(sources), *shape), -np.inf)
    for layer, head, found in vocabulary_map.ranks(model, sources, torch.from_numpy(targets)):
        above[..., layer, head], below[..., layer, head] = found.above, found.below
        best[:, layer, head], logit[:, layer, head] = found.best, found.logit

    results = Results(capture, seed=seed, source=SOURCE)
    named: dict[str, list[str]] = {}
    descriptions: dict[str, str] = {}
    sentences, start = [], 0
    absent = [layer for layer in range(model.layers) if layer not in model.geometry.attending]
    for name, each in drawn.items():
        part = slice(start, start + len(each))
        start += len(each)
        first = 1 if name.endswith("copying") else k
        for ranks, kind, sign in ((above, "", ""), (below, "_suppression", "−")):
            hits = (ranks[:, part] < first).astype(float)
            hits[:, :, absent] = np.nan
            null = float(np.nanmax(hits[1:].mean(1)))
            title = name.replace("_", " ") + (", suppressed" if kind else "")
            results.add_mean(
                f"{name}{kind}", GRID, hits[0], f"Pairs of {title}", *UNITS, null=null,
                convention=f"target among the first {first} of the source's row of {sign}M; "
                f"{len(each)} pairs; the best head with shuffled targets: {amount(null)}",
            )  # fmt: skip
            score, lower = (results[f"{name}{kind}{end}"].values for end in ("", "_lower"))
            heads = top(np.where(lower > null, score, np.nan), score.size)
            if heads:
                named[f"{name}{kind}"] = [label(head) for head in heads]
                shown = [f"{label(head)} {amount(score[head])}" for head in heads]
                sentences.append(f"{title}: {first_few(shown, NAMED)}.")
                if not kind:
                    place = (slice(part.start, part.stop), *heads[0])
                    order = np.argsort(-logit[place], kind="stable")[:SHOWN]
                    chosen = [(each[at][0], int(best[place][at])) for at in order]
                    descriptions.setdefault(label(heads[0]), _described(model, chosen))
    note = " ".join(f"{head}: {words}." for head, words in descriptions.items())
    if left_out:
        note += f" Left out, too few pairs of single tokens: {', '.join(left_out)}."
    return results.dataset(
        verdict=_verdict(sentences, list(drawn)),
        note=note.strip(),
        heads_by_relation=named,
        descriptions=descriptions,
        left_out=left_out,
    )


def _described(model: Model, pairs: list[tuple[int, int]]) -> str:
    ends = ((model.words([one])[0], model.words([other])[0]) for one, other in pairs)
    return ", ".join(f"{str(one).strip()} → {str(other).strip()}" for one, other in ends)


def _verdict(sentences: list[str], names: list[str]) -> Verdict:
    if sentences:
        return Verdict("supported", f"Above what shuffled targets reach, {' '.join(sentences)}")
    words = ", ".join(name.replace("_", " ") for name in names)
    return Verdict("not_supported", f"No head has a relation of {words} above shuffled targets.")

"""Training rows for the bundled model, built from the task generators."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from headscope.probes.prompts.task import Prompt
from headscope.probes.prompts.tasks import load
from headscope.probes.prompts.tasks._sentences import sentences
from headscope.probes.prompts.tasks._vocabulary import Vocabulary
from headscope.probes.prompts.tasks.brackets import PAIRS

SPECIAL = ("<bos>", "<pad>", "<unk>")
FILL = "fill"


@dataclass(frozen=True)
class Source:
    """One kind of row.

    Parameters
    ----------
    task
        Name of a task, or ``text`` for sentences only.
    share
        Relative share of the rows.
    options
        Options of the task; a pair of numbers is a range drawn from for each row, ``FILL`` is the
        length of the row.
    answer
        Weight of the loss on predictable words.
    text
        Weight of the loss on the other words.
    """

    task: str
    share: float
    options: Mapping[str, Any] = field(default_factory=dict)
    answer: float = 1.0
    text: float = 0.0


def vocabulary() -> dict[str, int]:
    """Token ids of the bundled model's tokenizer, special tokens first.

    >>> vocabulary()["<bos>"]
    0
    """
    return {word: number for number, word in enumerate((*SPECIAL, *Vocabulary().take()))}


def _document(
    rng: random.Random, prompt: Prompt, answer: float, text: float
) -> tuple[list[str], list[float]]:
    words = list(prompt.words)
    weights = [text] * len(words)
    for question in prompt.questions:
        weights[question.at] = answer
        if question.at + 1 == len(words):
            words.append(rng.choice(question.answers))
    if "top" in prompt.roles:
        # The other open brackets are as predictable as the innermost one.
        rest = [PAIRS[words[place]] for place in reversed(prompt.roles["open"][:-1])]
        words += rest
        weights += [answer] * len(rest)
    weights += [text] * (len(words) - len(weights))
    return words, weights


def _documents(
    rng: random.Random, source: Source, words: Vocabulary, length: int
) -> Iterator[tuple[list[str], list[float]]]:
    if source.task == "text":
        for line in sentences(rng, words):
            yield list(line), [source.text] * len(line)
    options: dict[str, Any] = {}
    for name, value in source.options.items():
        if value == FILL:
            # BOS before and one answer behind make up the row.
            options[name] = length - 1
        elif isinstance(value, tuple):
            whole = isinstance(value[0], int)
            options[name] = rng.randint(*value) if whole else rng.uniform(*value)
        else:
            options[name] = value
    # A row that ends before its first question would teach nothing.
    if source.task == "induction":
        options["length"] = min(options["length"], length // 2)
    if source.task == "recall" and "length" not in options:
        options["pairs"] = min(options["pairs"], length // 3)
    many = 1 if FILL in source.options.values() else length
    for prompt in load(source.task).generate(many, rng.randrange(2**48), words, **options):
        yield _document(rng, prompt, source.answer, source.text)


def rows(
    sources: tuple[Source, ...], batch: int, length: int, seed: str
) -> tuple[list[list[int]], list[list[float]], list[str]]:
    """Draw rows of ``length + 1`` token ids, and the weight of each prediction.

    Parameters
    ----------
    sources
        The mixture; every row is of one source.
    batch
        Number of rows.
    length
        Predictions in a row.
    seed
        Seed of the draw.

    Returns
    -------
    tuple
        Ids (batch, length + 1), weights (batch, length): weight t is for id t + 1; and the task
        of each row.

    Examples
    --------
    >>> ids, weights, kinds = rows((Source("induction", 1.0, {"length": (4, 8)}),), 2, 16, "a")
    >>> len(ids[0]), len(weights[0]), ids[0][0]
    (17, 16, 0)
    """
    rng = random.Random(seed)
    words = Vocabulary()
    table = vocabulary()
    drawn = rng.choices(sources, [source.share for source in sources], k=batch)
    ids, weights = [], []
    for source in drawn:
        # The word at place p is predicted by the position before it, hence the lag of one: the
        # weight list of a document belongs to its own words, BOS predicts with weight zero.
        row, weight = [0], [0.0]
        for text, scores in _documents(rng, source, words, length):
            row += [table[word] for word in text]
            weight += scores
            if len(row) > length:
                break
        else:
            missing = length + 1 - len(row)
            row += [table["<pad>"]] * max(missing, 0)
            weight += [0.0] * max(missing, 0)
        ids.append(row[: length + 1])
        weights.append(weight[:length])
    return ids, weights, [source.task for source in drawn]

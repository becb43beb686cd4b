"""Training rows of the story model, built from the task generators."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from headscope.probes.prompts.task import Prompt
from headscope.probes.prompts.tasks import load
from headscope.probes.prompts.tasks._sentences import sentences
from headscope.probes.prompts.tasks._vocabulary import Vocabulary
from headscope.probes.prompts.tasks.brackets import PAIRS
from headscope.probes.prompts.writing import split
from headscope_training.words import vocabulary

FILL = "fill"


@dataclass(frozen=True)
class RowSource:
    """One kind of row: a task, or ``text`` for sentences only, and its share of the rows.

    Of the task's `options` a pair of numbers is a range drawn from for each row, `FILL` is the
    length of the row. `answer` is the weight of the loss on predictable words, `text` that on the
    others.
    """

    task: str
    share: float
    options: Mapping[str, Any] = field(default_factory=dict)
    answer: float = 1.0
    text: float = 0.0


def _weighted_words(
    rng: random.Random, prompt: Prompt, answer: float, text: float
) -> tuple[list[str], list[float]]:
    """The words of a prompt with its answers, and the weight of predicting behind each word."""
    assert isinstance(prompt.clean, str)
    words = split(prompt.clean)
    weights = [text] * len(words)
    for question in prompt.questions:
        weights[len(split(prompt.clean[: question.at])) - 1] = answer
        if question.at == len(prompt.clean):
            words.append(str(rng.choice(question.answers)).strip())
    if "top" in prompt.roles:
        # The other open brackets are as predictable as the innermost one.
        rest = [PAIRS[str(prompt.part(span))] for span in reversed(prompt.roles["open"][:-1])]
        words += rest
        weights += [answer] * len(rest)
    weights += [text] * (len(words) - len(weights))
    return words, weights


def _documents(
    rng: random.Random, source: RowSource, words: Vocabulary, length: int
) -> Iterator[tuple[list[str], list[float]]]:
    """Words and weights, enough to fill a row."""
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
    count = 1 if FILL in source.options.values() else length
    for prompt in load(source.task).generate(count, rng.randrange(2**48), words, **options):
        yield _weighted_words(rng, prompt, source.answer, source.text)


def rows(
    sources: tuple[RowSource, ...], batch: int, length: int, seed: str
) -> tuple[list[list[int]], list[list[float]], list[str]]:
    """Draw rows, each of one source: ids (batch, length + 1), weights (batch, length), tasks.

    Weight t is for id t + 1.
    """
    rng = random.Random(seed)
    words = Vocabulary()
    table = vocabulary()
    drawn = rng.choices(sources, [source.share for source in sources], k=batch)
    ids, weights = [], []
    for source in drawn:
        # A word is predicted by the position before it, hence the lag of one: the weights of a
        # document belong to its own words, BOS predicts with weight zero.
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

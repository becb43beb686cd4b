"""Induction: a random sequence of tokens is repeated; the repetition is predictable.

SmolLM2-135M predicts 80 % of the repeated tokens of 20 prompts (of 32 tokens, said twice), and
Gemma 3 270M 94 %.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from headscope.kernels.errors import InvalidInput
from headscope.probes.prompts.task import Prompt, Question, Span
from headscope.probes.prompts.tasks._vocabulary import Vocabulary
from headscope.probes.prompts.writing import continuation, join_words

METRIC = "accuracy"
CONTENT = ("names", "places", "things", "adjectives", "events", "keys", "values")


def generate(
    n: int, seed: int, vocabulary: Vocabulary, *, length: int = 32, distinct: bool = True
) -> Iterator[Prompt]:
    """Draw repeated random sequences (Elhage et al. 2021; Olsson et al. 2022).

    Every token of the second half but the last has a question; the evidence is the token that
    followed its earlier occurrence. In the corrupted prompt the first half is another random
    sequence. In natural register the tokens are ids of whole words of the model's vocabulary, or of
    all its ordinary tokens where it holds too few, so that the task runs on any model.

    Parameters
    ----------
    n, seed, vocabulary
        Number of prompts, seed of the draw, words to draw from.
    length
        Tokens in one half, 2 or more.
    distinct
        Draw without repeats inside a half, of the plain register content words alone; otherwise
        with repeats, and of the plain register punctuation and numbers too.

    Examples
    --------
    >>> words = next(generate(1, 0, Vocabulary(), length=4)).clean.split()
    >>> words[:4] == words[4:]
    True
    """
    if length < 2:
        raise InvalidInput(f"length: {length} words repeat nothing to predict; use 2 or more")
    rng = random.Random(f"induction {seed}")
    pool: tuple[Any, ...]
    if not vocabulary.plain:
        pool = vocabulary.ids(least=length + 1 if distinct else 2)
    else:
        pool = vocabulary.take(*CONTENT, least=length + 1) if distinct else vocabulary.take(least=2)

    def draw(_: int) -> Prompt:
        half, other = (
            tuple[Any, ...](rng.sample(pool, length) if distinct else rng.choices(pool, k=length))
            for _ in range(2)
        )
        wrong: list[Any] = []
        for answer in half[1:]:
            wrong.append(half[rng.randrange(length)])
            while wrong[-1] == answer:
                wrong[-1] = pool[rng.randrange(len(pool))]
        if vocabulary.plain:
            return _write_text(half, other, wrong)
        clean, corrupted = (
            (vocabulary.at_start(first[0]), *first[1:], *half) for first in (half, other)
        )
        spans = tuple((at, at + 1) for at in range(2 * length))
        return _ask(clean, corrupted, spans, half[1:], wrong)

    return vocabulary.accept(n, draw)


def _write_text(half: Sequence[str], other: Sequence[str], wrong: Sequence[str]) -> Prompt:
    """Return a prompt of a half twice; `wrong` are for its words but the first."""
    clean, spans = join_words((*half, *half))
    corrupted, new_spans = join_words((*other, *half))
    # With the space before the second half, which stands between digits in one of the two alone.
    change = ((0, spans[len(half)][0]), (0, new_spans[len(half)][0]))
    right, false = (
        tuple(continuation(before, word) for before, word in zip(half, side, strict=False))
        for side in (half[1:], wrong)
    )
    return replace(_ask(clean, corrupted, spans, right, false), changes=(change,))


def _ask(
    clean: Any, corrupted: Any, spans: Sequence[Span], right: Sequence[Any], wrong: Sequence[Any]
) -> Prompt:
    """Ask every token of the second half but the last for the next one."""
    length = len(spans) // 2
    questions = tuple(
        Question(spans[length + at][1], (right[at],), (wrong[at],), (spans[at + 1],))
        for at in range(length - 1)
    )
    roles = {"first": tuple(spans[:length]), "second": tuple(spans[length:])}
    return Prompt(clean, corrupted, questions, roles)

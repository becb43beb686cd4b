"""Induction: a random sequence of words is said twice; the second time is predictable."""

import random
from collections.abc import Iterator

from headscope.kernels.errors import InvalidInput
from headscope.probes.prompts.task import Prompt, Question
from headscope.probes.prompts.tasks._vocabulary import Vocabulary

METRIC = "accuracy"
CONTENT = ("names", "places", "things", "adjectives", "events", "keys", "values")


def generate(
    n: int, seed: int, words: Vocabulary, *, length: int = 32, distinct: bool = True
) -> Iterator[Prompt]:
    """Draw repeated random sequences (Elhage et al. 2021; Olsson et al. 2022).

    Every word of the second half but the last is asked; the evidence is the word that followed
    the earlier occurrence. In the corrupted prompt the first half is another random sequence.

    Parameters
    ----------
    n
        Number of prompts.
    seed
        Seed of the draw.
    words
        Words to use.
    length
        Words in one half, 2 or more.
    distinct
        Draw content words without repeats inside a half; otherwise draw from all words,
        punctuation and numbers too, with repeats. Where the tokenizer holds too few of them as
        one token, the words are its own.

    Raises
    ------
    InvalidInput
        If `length` < 2, or fewer words than `length` remain.

    Examples
    --------
    >>> prompt = next(generate(1, 0, Vocabulary(), length=4))
    >>> prompt.words[:4] == prompt.words[4:]
    True
    """
    if length < 2:
        raise InvalidInput(f"length: {length} words repeat nothing to predict; use 2 or more")
    rng = random.Random(f"induction {seed}")
    pool = words.take_any(*CONTENT, least=length + 1) if distinct else words.take(least=2)
    for _ in range(n):
        half, other = (
            tuple(rng.sample(pool, length) if distinct else rng.choices(pool, k=length))
            for _ in range(2)
        )
        questions = []
        for at in range(length, 2 * length - 1):
            answer = half[at + 1 - length]
            wrong = half[rng.randrange(length)]
            while wrong == answer:
                wrong = pool[rng.randrange(len(pool))]
            questions.append(Question(at, (answer,), (wrong,), (at + 1 - length,)))
        yield Prompt(
            half + half,
            other + half,
            tuple(questions),
            {"first": tuple(range(length)), "second": tuple(range(length, 2 * length))},
        )

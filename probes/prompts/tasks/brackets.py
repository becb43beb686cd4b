"""Brackets: close the innermost bracket that is still open."""

import random
from collections.abc import Iterator

from headscope.kernels.errors import InvalidInput
from headscope.probes.prompts.task import Prompt, Question
from headscope.probes.prompts.tasks._vocabulary import Vocabulary

METRIC = "accuracy"
PAIRS = {"(": ")", "[": "]", "{": "}"}


def generate(
    n: int, seed: int, words: Vocabulary, *, length: int = 16, depth: int = 4
) -> Iterator[Prompt]:
    """Draw nested brackets of three kinds, then ``close``: which bracket closes first?

    The evidence is the innermost open bracket; the corrupted prompt opens another kind there.

    Parameters
    ----------
    n
        Number of prompts.
    seed
        Seed of the draw.
    words
        Words to use.
    length
        Brackets before ``close``, 1 or more.
    depth
        Most brackets open at once, 1 or more.

    Raises
    ------
    InvalidInput
        If `length` or `depth` < 1, `length` is even with a depth of 1 (nothing stays open), or a
        bracket is not a single token.

    Examples
    --------
    >>> prompt = next(generate(1, 0, Vocabulary(), length=1))
    >>> prompt.words[1], PAIRS[prompt.words[0]] == prompt.questions[0].answers[0]
    ('close', True)
    """
    if length < 1 or depth < 1:
        raise InvalidInput(f"length, depth: {length}, {depth}; use 1 or more")
    if depth == 1 and length % 2 == 0:
        raise InvalidInput(
            f"length: {length} brackets at depth 1 leave none open; use an odd length"
        )
    words.take("brackets", least=6)
    rng = random.Random(f"brackets {seed}")
    kinds = tuple(PAIRS)
    for _ in range(n):
        text: list[str] = []
        stack: list[int] = []
        while len(text) < length:
            left = length - len(text)
            must_open = not stack or (left == 1 and len(stack) == 1)
            if must_open or (len(stack) < depth and rng.random() < 0.5):
                stack.append(len(text))
                text.append(kinds[rng.randrange(3)])
            else:
                text.append(PAIRS[text[stack.pop()]])
        top = stack[-1]
        right = text[top]
        other = rng.choice([kind for kind in kinds if kind != right])
        corrupted = [*text[:top], other, *text[top + 1 :]]
        wrong = [PAIRS[other], *(PAIRS[kind] for kind in kinds if kind not in (right, other))]
        yield Prompt(
            (*text, "close"),
            (*corrupted, "close"),
            (Question(length, (PAIRS[right],), tuple(wrong), (top,)),),
            {"open": tuple(stack), "top": (top,), "END": (length,)},
        )

"""Brackets: close the innermost bracket that is still open.

Of 20 prompts of 16 brackets in natural register SmolLM2-135M closes the right one in 70 %, Gemma 3
270M in 45 %; of three brackets one is right by chance in 33 %.
"""

import random
from collections.abc import Iterator

from headscope.kernels.errors import InvalidInput
from headscope.probes.prompts.task import Prompt, Question
from headscope.probes.prompts.tasks._vocabulary import Vocabulary
from headscope.probes.prompts.writing import Writer

METRIC = "accuracy"
PAIRS = {"(": ")", "[": "]", "{": "}"}


def generate(
    n: int, seed: int, vocabulary: Vocabulary, *, length: int = 16, depth: int = 4
) -> Iterator[Prompt]:
    """Draw nested brackets of three kinds, then ``close``: which bracket closes first?

    In natural register the closing bracket that is asked for follows the others directly. The
    evidence is the innermost open bracket; the corrupted prompt opens another kind there.

    Parameters
    ----------
    n, seed, vocabulary
        Number of prompts, seed of the draw, words to draw from.
    length
        Brackets before the question, 1 or more; an odd number where `depth` is 1.
    depth
        Most brackets open at once, 1 or more.

    Examples
    --------
    >>> prompt = next(generate(1, 0, Vocabulary(), length=1))
    >>> prompt.clean[2:], f" {PAIRS[prompt.clean[0]]}" == prompt.questions[0].answers[0]
    ('close', True)
    """
    if length < 1 or depth < 1:
        raise InvalidInput(f"length, depth: {length}, {depth}; use 1 or more")
    if depth == 1 and length % 2 == 0:
        raise InvalidInput(
            f"length: {length} brackets at depth 1 leave none open; use an odd length"
        )
    if vocabulary.plain:
        vocabulary.take("brackets", least=6)
    rng = random.Random(f"brackets {seed}")
    kinds = tuple(PAIRS)

    def draw(_: int) -> list[Prompt]:
        text: list[str] = []
        stack: list[int] = []
        while len(text) < length:
            remaining = length - len(text)
            must_open = not stack or (remaining == 1 and len(stack) == 1)
            if must_open or (len(stack) < depth and rng.random() < 0.5):
                stack.append(len(text))
                text.append(kinds[rng.randrange(3)])
            else:
                text.append(PAIRS[text[stack.pop()]])
        other = rng.choice([kind for kind in kinds if kind != text[stack[-1]]])
        # Behind a space of its own where the tokenizer has no token for a bracket with its space.
        return [_write(text, stack, other, close, vocabulary.plain) for close in (" {}", "{}")]

    return vocabulary.accept(n, draw)


def _write(text: list[str], stack: list[int], other: str, close: str, plain: bool) -> Prompt:
    top, right = stack[-1], text[stack[-1]]
    writer = Writer()
    spans = [
        writer.write("{sign}", sign=(sign, other if at == top else sign))["sign"]
        for at, sign in enumerate(text)
    ]
    end = writer.write("close")["whole"] if plain else spans[-1]
    if not close[0].isspace():
        writer.write(" ")
    wrong = [PAIRS[other], *(PAIRS[kind] for kind in PAIRS if kind not in (right, other))]
    question = Question(
        writer.end,
        (close.format(PAIRS[right]),),
        tuple(close.format(sign) for sign in wrong),
        (spans[top],),
    )
    roles = {"open": [spans[at] for at in stack], "top": [spans[top]], "END": [end]}
    return writer.prompt([question], roles)

"""Needle: one fact in a haystack of sentences, asked for at the end."""

import random
from collections.abc import Iterator

from headscope.kernels.errors import InvalidInput
from headscope.probes.prompts.task import Prompt, Question
from headscope.probes.prompts.tasks._sentences import filler, sentences
from headscope.probes.prompts.tasks._vocabulary import Vocabulary

METRIC = "accuracy"


def generate(
    n: int,
    seed: int,
    words: Vocabulary,
    *,
    length: int = 256,
    depth: float | None = None,
    span: int = 1,
) -> Iterator[Prompt]:
    """Draw haystacks that hold ``note KEY VALUE .`` and end in ``ask KEY`` (Wu et al. 2404.15574).

    Key and value appear nowhere else. The corrupted prompt states other values.

    Parameters
    ----------
    n
        Number of prompts.
    seed
        Seed of the draw.
    words
        Words to use.
    length
        Words in a prompt.
    depth
        Where the fact stands, 0 (start) to 1 (end); None spreads the prompts evenly over 0 to 1.
    span
        Words in the value; each is asked in turn, after the right ones before it.

    Raises
    ------
    InvalidInput
        If `depth` is outside 0 to 1, `span` < 1, `length` too short, or too few words remain.

    Examples
    --------
    >>> prompt = next(generate(1, 0, Vocabulary(), length=40, depth=0.5))
    >>> prompt.words[-2], prompt.words.count(prompt.words[-1])
    ('ask', 2)
    """
    if depth is not None and not 0 <= depth <= 1:
        raise InvalidInput(f"depth: {depth} is outside 0 to 1")
    if span < 1:
        raise InvalidInput(f"span: {span} words in the value; use 1 or more")
    hay = length - (3 + span) - (1 + span)
    if hay < 0:
        raise InvalidInput(
            f"length: {length} words do not hold the fact; use {4 + 2 * span} or more"
        )
    rng = random.Random(f"needle {seed}")
    keys = words.take("keys", least=1)
    values = words.take("values", least=2 * span)
    stream = sentences(rng, words)
    for number in range(n):
        here = depth if depth is not None else number / max(n - 1, 1)
        start = round(here * hay)
        key = keys[rng.randrange(len(keys))]
        drawn = rng.sample(values, 2 * span)
        before, after = filler(stream, start), filler(stream, hay - start)
        clean, corrupted = (
            (*before, "note", key, *secret, ".", *after, "ask", key, *secret[:-1])
            for secret in (drawn[:span], drawn[span:])
        )
        at = length - span
        yield Prompt(
            clean,
            corrupted,
            tuple(
                Question(at + step, (drawn[step],), (drawn[span + step],), (start + 2 + step,))
                for step in range(span)
            ),
            {
                "needle": tuple(range(start, start + 3 + span)),
                "key": (start + 1,),
                "value": tuple(range(start + 2, start + 2 + span)),
                "query": (at,),
            },
        )

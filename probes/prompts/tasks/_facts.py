"""Facts laid out in a text: note KEY VALUE, with sentences between them."""

import random
from collections.abc import Sequence

from headscope.kernels.errors import InvalidInput
from headscope.probes.prompts.tasks._sentences import filler, sentences
from headscope.probes.prompts.tasks._vocabulary import Vocabulary

# note KEY VALUE .
SIZE = 4


def lay(
    rng: random.Random,
    words: Vocabulary,
    facts: Sequence[tuple[str, str]],
    length: int | None,
    tail: int,
) -> tuple[list[str], list[int]]:
    """State facts in their order; return the words, and where each value stands.

    Parameters
    ----------
    rng
        Draws the sentences and where the facts stand between them.
    words
        Words to use.
    facts
        Pairs of key and value.
    length
        Words in the whole prompt; None uses facts only.
    tail
        Words that will follow.

    Raises
    ------
    InvalidInput
        If `length` does not hold the facts.

    Examples
    --------
    >>> lay(random.Random(0), Vocabulary(), [("dog", "north")], None, 2)
    (['note', 'dog', 'north', '.'], [2])
    """
    least = SIZE * len(facts) + tail
    if length is not None and length < least:
        raise InvalidInput(f"length: {length} words do not hold the facts; use {least} or more")
    spare = 0 if length is None else length - least
    cuts = sorted(rng.randint(0, spare) for _ in facts)
    stream = sentences(rng, words)
    text: list[str] = []
    places = []
    for (key, value), gap in zip(
        facts, [here - there for here, there in zip(cuts, [0, *cuts], strict=False)], strict=True
    ):
        text += filler(stream, gap)
        places.append(len(text) + 2)
        text += ["note", key, value, "."]
    return text + filler(stream, spare - cuts[-1]), places

"""Small English: short sentences of names, places and things."""

import random
from collections.abc import Iterator

from headscope.probes.prompts.tasks._vocabulary import Vocabulary

TEMPLATES = tuple(
    tuple(line.split())
    for line in """names went to the places .
names took the things to the places .
The adjectives things is in the places .
names and names walked to the places .
names saw names near the places .
Then names found a adjectives things .
In the places there was a adjectives things .
names gave the things to names .
names wanted to buy a things .
It was a adjectives day in the places .
After the day names carried the things to the places .
Then names ran from the places to the places .""".splitlines()
)
SLOTS = ("names", "places", "things", "adjectives")


def sentences(rng: random.Random, words: Vocabulary) -> Iterator[tuple[str, ...]]:
    """Endless random sentences, each ending in a full stop.

    >>> next(sentences(random.Random(0), Vocabulary()))[-1]
    '.'
    """
    fill = {slot: words.take(slot, least=4) for slot in SLOTS}
    while True:
        yield tuple(
            fill[word][int(rng.random() * len(fill[word]))] if word in fill else word
            for word in TEMPLATES[int(rng.random() * len(TEMPLATES))]
        )


def filler(stream: Iterator[tuple[str, ...]], length: int) -> list[str]:
    """Exactly `length` words of running sentences; the last sentence may be cut short.

    >>> len(filler(sentences(random.Random(0), Vocabulary()), 17))
    17
    """
    text: list[str] = []
    while len(text) < length:
        text.extend(next(stream))
    return text[:length]

"""Sentences that fill a prompt: of names, places and things, or English prose."""

import random
from collections.abc import Iterator

from headscope.probes.prompts.tasks._natural_words import PROSE
from headscope.probes.prompts.tasks._vocabulary import Vocabulary
from headscope.probes.prompts.writing import join

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


def sentences(rng: random.Random, vocabulary: Vocabulary) -> Iterator[tuple[str, ...]]:
    """Endless random sentences in words: small English, or prose in the natural register."""
    if vocabulary.plain:
        yield from small_english(rng, vocabulary)
    while True:
        for line in rng.sample(PROSE, len(PROSE)):
            yield tuple(line.split(" "))


def small_english(rng: random.Random, vocabulary: Vocabulary) -> Iterator[tuple[str, ...]]:
    """Endless random sentences of names, places and things, each ending in a full stop."""
    fill = {slot: vocabulary.take(slot, least=4) for slot in SLOTS}
    while True:
        yield tuple(
            fill[word][int(rng.random() * len(fill[word]))] if word in fill else word
            for word in TEMPLATES[int(rng.random() * len(TEMPLATES))]
        )


class Filler:
    """Running sentences of a number of words.

    >>> from headscope.probes.prompts.writing import split
    >>> filler = Filler(random.Random(0), Vocabulary())
    >>> len(split(filler.text(17)))
    17
    """

    def __init__(self, rng: random.Random, vocabulary: Vocabulary) -> None:
        self._stream = sentences(rng, vocabulary)
        self._plain = vocabulary.plain
        self._pending: tuple[str, ...] = ()

    def text(self, length: int) -> str:
        """Return sentences of exactly so many words, the last cut short; of prose, whole ones."""
        text: list[str] = []
        if self._plain:
            while len(text) < length:
                text.extend(next(self._stream))
            return join(text[:length])
        while True:
            line = self._pending or next(self._stream)
            if len(text) + len(line) > length:
                self._pending = line
                return " ".join(text)
            self._pending = ()
            text.extend(line)

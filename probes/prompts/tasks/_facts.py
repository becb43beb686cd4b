"""Facts laid out in a text, with sentences between them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from headscope.kernels.errors import InvalidInput
from headscope.probes.prompts.tasks._sentences import Filler
from headscope.probes.prompts.writing import split

if TYPE_CHECKING:
    from headscope.probes.prompts.task import Span
    from headscope.probes.prompts.tasks._vocabulary import Vocabulary
    from headscope.probes.prompts.writing import Writer

# Key, value, and the value that the corrupted prompt states.
Fact = tuple[str, str, str]


@dataclass(frozen=True)
class Wording:
    """Templates that state a fact and ask for it, and what follows an answer."""

    fact: str
    ask: str
    then: str = "."

    @property
    def size(self) -> int:
        """Words of a fact."""
        return count(self.fact)


PLAIN = Wording("note {key} {value}.", "ask {key}")
BARE = Wording("{key} {value}", "{key}", "")
NATURAL = Wording(
    "The special object of {key} is the {value}.", "The special object of {key} is the"
)


def count(template: str) -> int:
    """Number of words and signs of a template, a field being one word."""
    return len(split(template.replace("{", "").replace("}", "")))


def lay(
    writer: Writer,
    rng: random.Random,
    vocabulary: Vocabulary,
    wording: Wording,
    facts: Sequence[Fact],
    length: int | None,
    tail: int,
) -> list[dict[str, Span]]:
    """State facts in their order; return where key and value of each stand.

    Sentences stand between them so that the whole prompt, with ``tail`` words that will follow,
    has ``length`` words; None uses facts only.
    """
    least = wording.size * len(facts) + tail
    if length is not None and length < least:
        raise InvalidInput(f"length: {length} words do not hold the facts; use {least} or more")
    spare = 0 if length is None else length - least
    cuts = sorted(rng.randint(0, spare) for _ in facts)
    filler = Filler(rng, vocabulary)
    spans = []
    for (key, value, changed), (last, cut) in zip(facts, pairwise([0, *cuts]), strict=True):
        writer.write(filler.text(cut - last))
        spans.append(writer.write(wording.fact, key=key, value=(value, changed)))
    writer.write(filler.text(spare - cuts[-1]))
    return spans

"""Indirect-object identification (IOI): one of two people gives, the other is to be named.

SmolLM2-135M answers 95 % of 20 prompts and Gemma 3 270M 90 %; the logit difference is above 0 on
all of them, on both.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from headscope.kernels.errors import InvalidInput
from headscope.probes.prompts.task import Question
from headscope.probes.prompts.writing import Writer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headscope.probes.prompts.task import Prompt, Span
    from headscope.probes.prompts.tasks._vocabulary import Vocabulary

METRIC = "logit_difference"
TEMPLATES = tuple(
    """When {A} and {B} went to the {PLACE}, {S} gave a {THING} {END}
Then {A} and {B} went to the {PLACE} and {S} gave a {THING} {END}
After {A} and {B} came to the {PLACE}, {S} handed the {THING} {END}
While {A} and {B} worked at the {PLACE}, {S} passed a {THING} {END}
When {A} and {B} walked to the {PLACE}, {S} offered a {THING} {END}
Then {A} and {B} had a day at the {PLACE}. {S} sold the {THING} {END}""".splitlines()
)
CORRUPTIONS = ("third", "swap", "names")


def generate(
    n: int,
    seed: int,
    vocabulary: Vocabulary,
    *,
    order: str = "both",
    corruption: str = "third",
) -> Iterator[Prompt]:
    """Draw indirect-object sentences (Wang et al. 2211.00593).

    The answer is the indirect object (IO), the wrong answer the subject (S).

    Parameters
    ----------
    n, seed, vocabulary
        Number of prompts, seed of the draw, words to draw from.
    order
        ``ABBA`` (IO named first), ``BABA`` (S named first), or ``both`` at random.
    corruption
        ``third``: the second mention of S becomes a third person, so nothing distinguishes IO from
        S; ``swap``: it becomes IO, so the answer is swapped; ``names``: all three mentions become
        three others, as in the paper, so that no head has any evidence.

    Examples
    --------
    >>> from headscope.probes.prompts.tasks._vocabulary import Vocabulary
    >>> prompt = next(generate(1, 0, Vocabulary()))
    >>> f" {prompt.part(prompt.roles['S2'][0])}" == prompt.questions[0].wrong[0]
    True
    """
    if order not in ("ABBA", "BABA", "both"):
        raise InvalidInput(f"order: {order!r} is unknown; choose ABBA, BABA or both")
    if corruption not in CORRUPTIONS:
        raise InvalidInput(
            f"corruption: {corruption!r} is unknown; choose {' or '.join(CORRUPTIONS)}"
        )
    rng = random.Random(f"ioi {seed}")

    def draw(_: int) -> Prompt:
        writer = Writer()
        question, roles = write(writer, rng, vocabulary, order, corruption)
        return writer.prompt([question], roles)

    vocabulary.take("names", least=_people(corruption))
    return vocabulary.accept(n, draw)


def write(
    writer: Writer,
    rng: random.Random,
    vocabulary: Vocabulary,
    order: str = "both",
    corruption: str = "third",
) -> tuple[Question, dict[str, list[Span]]]:
    """Append an indirect-object sentence; return its question and roles."""
    least = _people(corruption)
    names, places, things = (
        vocabulary.take("names", least=least), vocabulary.take("places"), vocabulary.take("things")
    )  # fmt: skip
    receiver, subject, third, *others = rng.sample(names, least)
    # Drawn, not in turn: a model trained on such prompts one after another would count.
    first = rng.random() < 0.5 if order == "both" else order == "ABBA"
    named = (receiver, subject) if first else (subject, receiver)
    spans = writer.write(
        TEMPLATES[rng.randrange(len(TEMPLATES))],
        A=(named[0], others[0]) if others else named[0],
        B=(named[1], others[1]) if others else named[1],
        S=(subject, receiver if corruption == "swap" else third),
        PLACE=places[rng.randrange(len(places))],
        THING=things[rng.randrange(len(things))],
        END="to",
    )
    receiver_span, subject_span = (spans["A"], spans["B"]) if first else (spans["B"], spans["A"])
    roles = {
        "IO": [receiver_span],
        "S1": [subject_span],
        "S1+1": [writer.word_after(subject_span)],
        "S2": [spans["S"]],
        "END": [spans["END"]],
    }
    return Question(writer.end, (f" {receiver}",), (f" {subject}",), (receiver_span,)), roles


def _people(corruption: str) -> int:
    """Return how many people a sentence and its corrupted form name."""
    return 5 if corruption == "names" else 3

"""Story: a few plain sentences that end in an indirect-object question."""

import random
from collections.abc import Iterator

from headscope.kernels.errors import InvalidInput
from headscope.probes.prompts.task import Prompt, Question
from headscope.probes.prompts.tasks import ioi
from headscope.probes.prompts.tasks._sentences import sentences
from headscope.probes.prompts.tasks._vocabulary import Vocabulary

METRIC = "logit_difference"


def generate(n: int, seed: int, words: Vocabulary, *, lines: int = 4) -> Iterator[Prompt]:
    """Draw stories of names, places and things; the last sentence asks who receives.

    The corrupted prompt names a third person as the giver.

    Parameters
    ----------
    n
        Number of prompts.
    seed
        Seed of the draw.
    words
        Words to use.
    lines
        Sentences before the last, 1 or more.

    Raises
    ------
    InvalidInput
        If `lines` < 1, or too few words are single tokens.

    Examples
    --------
    >>> next(generate(1, 0, Vocabulary(), lines=1)).words[-1]
    'to'
    """
    if lines < 1:
        raise InvalidInput(f"lines: {lines} sentences; use 1 or more")
    rng = random.Random(f"story {seed}")
    stream = sentences(rng, words)
    for last in ioi.generate(n, rng.randrange(2**32), words):
        written = [next(stream) for _ in range(lines)]
        before = tuple(word for line in written for word in line)
        shift = len(before)
        question = last.questions[0]
        starts = [sum(len(line) for line in written[:place]) for place in range(lines)]
        yield Prompt(
            before + last.words,
            before + last.corrupted,
            (
                Question(
                    question.at + shift,
                    question.answers,
                    question.wrong,
                    tuple(place + shift for place in question.evidence),
                ),
            ),
            {
                **{role: tuple(p + shift for p in places) for role, places in last.roles.items()},
                "sentence": (*starts, shift),
            },
        )

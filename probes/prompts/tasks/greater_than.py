"""Greater-than: a span of years must end later than it began."""

import random
from collections.abc import Iterator

from headscope.kernels.errors import InvalidInput
from headscope.probes.prompts.task import Prompt, Question
from headscope.probes.prompts.tasks._vocabulary import Vocabulary

METRIC = "probability_difference"


def generate(
    n: int, seed: int, words: Vocabulary, *, low: int = 2, high: int = 97
) -> Iterator[Prompt]:
    """Draw ``The war lasted from the year 17 32 to the year 17`` (Hanna et al. 2305.00586).

    Answers are the two-digit ends after the start, wrong ones the start and all before it. In the
    corrupted prompt the span starts in the year 01 of the century.

    Parameters
    ----------
    n
        Number of prompts.
    seed
        Seed of the draw.
    words
        Words to use.
    low, high
        First and last start year, 2 to 98.

    Raises
    ------
    InvalidInput
        If the years are out of range, or are not all single tokens.

    Examples
    --------
    >>> question = next(generate(1, 0, Vocabulary(), low=50, high=50)).questions[0]
    >>> question.answers[0], question.wrong[-1]
    ('51', '50')
    """
    if not 2 <= low <= high <= 98:
        raise InvalidInput(f"low, high: {low} to {high}; start years must lie within 2 to 98")
    rng = random.Random(f"greater_than {seed}")
    events = words.take("events", least=1)
    years = words.take("numbers", least=100)
    for _ in range(n):
        century, start = years[rng.randint(11, 17)], rng.randint(low, high)
        event = events[rng.randrange(len(events))]
        before = ("The", event, "lasted", "from", "the", "year")
        clean, corrupted = (
            (*before, century, year, "to", "the", "year", century)
            for year in (years[start], years[1])
        )
        yield Prompt(
            clean,
            corrupted,
            (Question(11, years[start + 1 :], years[: start + 1], (7,)),),
            {"event": (1,), "century": (6,), "start": (7,), "END": (11,)},
        )

"""Greater-than: a span of years must end later than it began.

SmolLM2-135M and Gemma 3 270M, whose digits are single tokens, give later decades a higher mean
logit than earlier ones in all of 20 prompts; the likeliest token is a later decade in 45 % and 75
%.
"""

import random
from collections.abc import Iterator

from headscope.kernels.errors import InvalidInput
from headscope.probes.prompts.task import Prompt, Question
from headscope.probes.prompts.tasks._vocabulary import Vocabulary
from headscope.probes.prompts.tasks._words import KINDS
from headscope.probes.prompts.writing import Writer

METRIC = "probability_difference"
# What of the last year stands in the prompt, by how a tokenizer cuts numbers: its century; nothing;
# the space before it; its century and decade.
SHOWN = ("{century}", "", " ", "{century}{decade}")


def generate(
    n: int, seed: int, vocabulary: Vocabulary, *, low: int = 2, high: int = 97
) -> Iterator[Prompt]:
    """Draw ``The war lasted from the year 1732 to the year 17`` (Hanna et al. 2305.00586).

    Answers are the ends of the same century after the start, wrong ones the start and all before
    it. In the corrupted prompt the span starts in the year 01 of the century. The question stands
    right before the first digit that decides, as the tokenizer cuts numbers: behind the century
    where that is a token of its own, else before the whole year, or behind the decade. A token that
    right and wrong years share (the decade of the start, where digits are single) is left out.

    Parameters
    ----------
    n, seed, vocabulary
        Number of prompts, seed of the draw, words to draw from.
    low, high
        First and last start year, 2 to 98.

    Examples
    --------
    >>> question = next(generate(1, 0, Vocabulary(), low=50, high=50)).questions[0]
    >>> question.answers[0], question.wrong[-1]
    ('51', '50')
    """
    if not 2 <= low <= high <= 98:
        raise InvalidInput(f"low, high: {low} to {high}; start years must lie within 2 to 98")
    rng = random.Random(f"greater_than {seed}")
    events = vocabulary.take("events", least=1)
    years = vocabulary.take("numbers", least=100) if vocabulary.plain else KINDS["numbers"]

    def draw(_: int) -> list[Prompt]:
        century, start = years[rng.randint(11, 17)], rng.randint(low, high)
        event = events[rng.randrange(len(events))]
        # Behind a decade that ends with the start, no later year is left.
        shown = SHOWN[:-1] if start % 10 == 9 else SHOWN
        return [_write(event, century, start, years, part) for part in shown]

    return vocabulary.accept(n, draw)


def _write(event: str, century: str, start: int, years: tuple[str, ...], shown: str) -> Prompt:
    writer = Writer()
    spans = writer.write(
        "The {event} lasted from the year {century}{start} to the {end}",
        event=event, century=century, start=(years[start], years[1]), end="year",
    )  # fmt: skip
    end = spans["end"]
    shown_digits = shown.format(century=century, decade=years[start][0])
    digits = shown_digits.strip()
    if shown_digits:
        written = writer.write(shown_digits)["whole"]
        end = written if digits else end
    space = "" if shown_digits else " "
    sides: tuple[list[str], list[str]] = ([], [])
    for year in years:
        if f"{century}{year}".startswith(digits):
            sides[int(year) <= start].append(space + f"{century}{year}".removeprefix(digits))
    later, earlier = map(tuple, sides)
    question = Question(writer.end, later, earlier, (spans["start"],))
    return writer.prompt(
        [question],
        {role: [spans[role]] for role in ("event", "century", "start")} | {"END": [end]},
    )

"""Indirect object: of two people the one who gives is named again; the other receives."""

import random
from collections.abc import Iterator

from headscope.kernels.errors import InvalidInput
from headscope.probes.prompts.task import Prompt, Question
from headscope.probes.prompts.tasks._vocabulary import Vocabulary

METRIC = "logit_difference"
TEMPLATES = tuple(
    tuple(line.split())
    for line in """When A and B went to the PLACE , S gave a THING to
Then A and B went to the PLACE and S gave a THING to
After A and B came to the PLACE , S handed the THING to
While A and B worked at the PLACE , S passed a THING to
When A and B walked to the PLACE , S offered a THING to
Then A and B had a day at the PLACE . S sold the THING to""".splitlines()
)
CORRUPTIONS = ("third", "swap")


def generate(
    n: int,
    seed: int,
    words: Vocabulary,
    *,
    order: str = "both",
    corruption: str = "third",
) -> Iterator[Prompt]:
    """Draw indirect-object sentences (Wang et al. 2211.00593).

    The answer is the indirect object (IO), the wrong answer the subject (S).

    Parameters
    ----------
    n
        Number of prompts.
    seed
        Seed of the draw.
    words
        Words to use.
    order
        ``ABBA`` (IO named first), ``BABA`` (S named first), or ``both`` at random.
    corruption
        ``third``: the second mention of S becomes a third person, so nothing tells IO from S;
        ``swap``: it becomes IO, so the answer turns round.

    Raises
    ------
    InvalidInput
        If an option is unknown, or fewer than 3 names are single tokens.

    Examples
    --------
    >>> prompt = next(generate(1, 0, Vocabulary()))
    >>> prompt.words[prompt.roles["S2"][0]] == prompt.questions[0].wrong[0]
    True
    """
    if order not in ("ABBA", "BABA", "both"):
        raise InvalidInput(f"order: {order!r} is unknown; choose ABBA, BABA or both")
    if corruption not in CORRUPTIONS:
        raise InvalidInput(
            f"corruption: {corruption!r} is unknown; choose {' or '.join(CORRUPTIONS)}"
        )
    rng = random.Random(f"ioi {seed}")
    names = words.take("names", least=3)
    places = words.take("places")
    things = words.take("things")
    for _ in range(n):
        receiver, subject, third = rng.sample(names, 3)
        # Drawn, not in turn: a model trained on such prompts one after another would count.
        first = rng.random() < 0.5 if order == "both" else order == "ABBA"
        template = TEMPLATES[rng.randrange(len(TEMPLATES))]
        fill = {
            "A": receiver if first else subject,
            "B": subject if first else receiver,
            "S": subject,
            "PLACE": places[rng.randrange(len(places))],
            "THING": things[rng.randrange(len(things))],
        }
        clean = tuple(fill.get(word, word) for word in template)
        again = template.index("S")
        other = third if corruption == "third" else receiver
        corrupted = (*clean[:again], other, *clean[again + 1 :])
        given = template.index("A" if first else "B")
        giver = template.index("B" if first else "A")
        end = len(clean) - 1
        yield Prompt(
            clean,
            corrupted,
            (Question(end, (receiver,), (subject,), (given,)),),
            {"IO": (given,), "S1": (giver,), "S1+1": (giver + 1,), "S2": (again,), "END": (end,)},
        )

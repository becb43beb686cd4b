"""Associative: a fact is asked for by a word that goes with its key, not by the key itself."""

import random
from collections.abc import Iterator

from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.probes.prompts.task import Prompt, Question
from headscope.probes.prompts.tasks._facts import lay
from headscope.probes.prompts.tasks._vocabulary import Vocabulary

METRIC = "accuracy"
PARTNERS = (
    ("salt", "pepper"), ("bread", "butter"), ("dog", "cat"), ("bee", "honey"), ("sheep", "wool"),
    ("duck", "goose"), ("hawk", "eagle"), ("mouse", "rat"), ("silver", "gold"), ("copper", "zinc"),
    ("fish", "shark"), ("lion", "tiger"), ("iron", "steel"), ("stone", "brick"), ("wolf", "fox"),
    ("apple", "banana"), ("potato", "tomato"), ("lemon", "cherry"), ("rice", "corn"),
    ("snake", "frog"), ("horse", "cow"), ("tin", "lead"), ("cotton", "silk"),
    ("leather", "rubber"), ("glass", "plastic"),
)  # fmt: skip


def generate(
    n: int,
    seed: int,
    words: Vocabulary,
    *,
    pairs: int = 4,
    length: int | None = None,
    literal: bool = False,
) -> Iterator[Prompt]:
    """Draw facts ``note KEY VALUE .`` and end in ``ask PARTNER`` of one KEY (NoLiMa).

    The asked word occurs nowhere else, and neither do the partners of the other keys, so matching
    words do not lead to the fact. The corrupted prompt states other values.

    Parameters
    ----------
    n
        Number of prompts.
    seed
        Seed of the draw.
    words
        Words to use.
    pairs
        Facts in a prompt, 2 or more: one alone could be answered without knowing its key.
    length
        Words in a prompt; small-English sentences stand between the facts to reach it. None uses
        facts only.
    literal
        Ask by the key itself: the control, with the same facts.

    Raises
    ------
    HeadscopeError
        If `pairs` < 2, `length` is too short, or too few words are single tokens.

    Examples
    --------
    >>> prompt = next(generate(1, 0, Vocabulary()))
    >>> prompt.words.count(prompt.words[-1])
    1
    """
    if pairs < 2:
        raise InvalidInput(f"pairs: {pairs} facts leave nothing to confuse; use 2 or more")
    keys = set(words.take("keys"))
    known = [pair for pair in PARTNERS if keys.issuperset(pair)]
    if len(known) < pairs:
        raise NotApplicable(
            f"pairs: {len(known)} pairs of partners are single tokens of this tokenizer, the task "
            f"needs {pairs}; ask for less or use another tokenizer"
        )
    values = words.take("values", least=2 * pairs)
    rng = random.Random(f"associative {seed}")
    for _ in range(n):
        chosen = [rng.sample(pair, 2) for pair in rng.sample(known, pairs)]
        drawn = rng.sample(values, 2 * pairs)
        stated, changed = drawn[:pairs], drawn[pairs:]
        facts = [(key, value) for (key, _), value in zip(chosen, stated, strict=True)]
        clean, places = lay(rng, words, facts, length, 2)
        corrupted = list(clean)
        for place, value in zip(places, changed, strict=True):
            corrupted[place] = value
        fact = rng.randrange(pairs)
        end = ["ask", chosen[fact][0 if literal else 1]]
        others = [value for at, value in enumerate(stated) if at != fact]
        yield Prompt(
            (*clean, *end),
            (*corrupted, *end),
            (Question(len(clean) + 1, (stated[fact],), (changed[fact], *others), (places[fact],)),),
            {
                "key": tuple(place - 1 for place in places),
                "value": tuple(places),
                "query": (len(clean) + 1,),
            },
        )

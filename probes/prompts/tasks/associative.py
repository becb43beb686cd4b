"""Associative: a fact is asked for by a word that goes with its key, not by the key itself.

Of 20 prompts of 2 facts in natural register SmolLM2-135M answers 35 % and Gemma 3 270M 40 %, of the
literal control 55 % and 50 %; chance is 50 %, so neither solves it. With the country in place of
its capital, or solved prompts before each, SmolLM2 stays at 50 % or below.
"""

import random
from collections.abc import Iterator

from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.probes.prompts.task import Prompt, Question
from headscope.probes.prompts.tasks._facts import NATURAL, PLAIN, count, lay
from headscope.probes.prompts.tasks._natural_words import CAPITALS
from headscope.probes.prompts.tasks._vocabulary import Vocabulary
from headscope.probes.prompts.writing import Writer

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
    vocabulary: Vocabulary,
    *,
    pairs: int | None = None,
    length: int | None = None,
    literal: bool = False,
) -> Iterator[Prompt]:
    """Draw facts ``note KEY VALUE .`` and end in ``ask PARTNER`` of one KEY (NoLiMa).

    In natural register a fact is ``The special object of Paris is the hammer.``, and the partner of
    Paris ``the capital of France``. The word of the question occurs nowhere else, and neither do
    the partners of the other keys, so matching words do not lead to the fact. The corrupted prompt
    states other values.

    Parameters
    ----------
    n, seed, vocabulary
        Number of prompts, seed of the draw, words to draw from.
    pairs
        Facts in a prompt, 2 or more: one alone could be answered without knowing its key. None
        states 4, in natural register 2.
    length
        Words in a prompt; sentences stand between the facts to reach it. None uses facts only.
    literal
        Ask by the key itself: the control, with the same facts.

    Examples
    --------
    >>> next(generate(1, 0, Vocabulary())).clean.split()[-2]
    'ask'
    """
    pairs = (4 if vocabulary.plain else 2) if pairs is None else pairs
    if pairs < 2:
        raise InvalidInput(f"pairs: {pairs} facts leave nothing to confuse; use 2 or more")
    wording, partners = NATURAL, list(CAPITALS)
    if vocabulary.plain:
        keys = set(vocabulary.take("keys"))
        wording, partners = PLAIN, [pair for pair in PARTNERS if keys.issuperset(pair)]
    if len(partners) < pairs:
        raise NotApplicable(
            f"pairs: {len(partners)} pairs of partners are known to this tokenizer, the task "
            f"needs {pairs}; ask for less or use another tokenizer"
        )
    values = vocabulary.take("values", least=2 * pairs)
    rng = random.Random(f"associative {seed}")

    def draw(_: int) -> Prompt:
        chosen = [rng.sample(pair, 2) for pair in rng.sample(partners, pairs)]
        drawn = rng.sample(values, 2 * pairs)
        stated, changed = drawn[:pairs], drawn[pairs:]
        facts = list(zip([key for key, _ in chosen], stated, changed, strict=True))
        writer = Writer()
        spans = lay(writer, rng, vocabulary, wording, facts, length, count(wording.ask))
        fact = rng.randrange(pairs)
        query = writer.write(wording.ask, key=chosen[fact][0 if literal else 1])["key"]
        others = [value for at, value in enumerate(stated) if at != fact]
        question = Question(
            writer.end,
            (f" {stated[fact]}",),
            tuple(f" {value}" for value in (changed[fact], *others)),
            (spans[fact]["value"],),
        )
        roles = {role: [span[role] for span in spans] for role in ("key", "value")}
        return writer.prompt([question], {**roles, "query": [query]})

    return vocabulary.accept(n, draw)

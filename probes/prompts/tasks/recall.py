"""Recall: many facts are stated, then asked for in another order (multi-query recall)."""

import random
from collections.abc import Iterator

from headscope.kernels.errors import InvalidInput
from headscope.probes.prompts.task import Prompt, Question
from headscope.probes.prompts.tasks._sentences import filler, sentences
from headscope.probes.prompts.tasks._vocabulary import Vocabulary

METRIC = "accuracy"


def generate(
    n: int,
    seed: int,
    words: Vocabulary,
    *,
    pairs: int = 8,
    queries: int | None = None,
    length: int | None = None,
    bare: bool = False,
) -> Iterator[Prompt]:
    """Draw facts ``note KEY VALUE .`` and questions ``ask KEY`` (Arora et al. 2023).

    The evidence of a question is the stated value. In the corrupted prompt every stated value is
    another one, drawn anew; the first wrong answer of a question is what the corrupted facts say.

    Parameters
    ----------
    n
        Number of prompts.
    seed
        Seed of the draw.
    words
        Words to use.
    pairs
        Facts in a prompt, 2 or more; keys are distinct, and so are values.
    queries
        Questions in a prompt; None asks for every fact once.
    length
        Words in a prompt; small-English sentences stand between the facts to reach it. None uses
        facts only.
    bare
        State and ask without the words around key and value.

    Raises
    ------
    InvalidInput
        If `pairs` < 2, `queries` is outside 1 to `pairs`, `length` is too short for the facts, or
        too few keys or values are single tokens.

    Examples
    --------
    >>> prompt = next(generate(1, 0, Vocabulary(), pairs=3))
    >>> question = prompt.questions[0]
    >>> prompt.words[question.evidence[0]] == question.answers[0]
    True
    """
    count = pairs if queries is None else queries
    if pairs < 2:
        raise InvalidInput(f"pairs: {pairs} facts leave nothing to confuse; use 2 or more")
    if not 1 <= count <= pairs:
        raise InvalidInput(f"queries: {count} questions about {pairs} facts; use 1 to {pairs}")
    before, after = ((), ()) if bare else (("note",), (".",))
    lead = () if bare else ("ask",)
    size = len(before) + 2 + len(after)
    least = pairs * size + count * (len(lead) + 2 + len(after)) - 1 - len(after)
    if length is not None and length < least:
        raise InvalidInput(f"length: {length} words do not hold the facts; use {least} or more")
    rng = random.Random(f"recall {seed}")
    keys = words.take("keys", least=pairs)
    values = words.take("values", least=pairs + 1)
    stream = sentences(rng, words) if length is not None else None
    for _ in range(n):
        chosen = rng.sample(keys, pairs)
        stated = rng.sample(values, pairs)
        changed = [
            value if value != old else stated[place - 1]
            for place, (value, old) in enumerate(
                zip(rng.sample(values, pairs), stated, strict=True)
            )
        ]
        spare = 0 if length is None else length - least
        cuts = sorted(rng.randint(0, spare) for _ in range(pairs))
        gaps = [here - there for here, there in zip(cuts, [0, *cuts], strict=False)]
        clean: list[str] = []
        places = []
        for key, value, gap in zip(chosen, stated, gaps, strict=True):
            if stream is not None:
                clean += filler(stream, gap)
            places.append(len(clean) + len(before) + 1)
            clean += [*before, key, value, *after]
        if stream is not None:
            clean += filler(stream, spare - cuts[-1])
        corrupted = list(clean)
        for place, value in zip(places, changed, strict=True):
            corrupted[place] = value
        questions = []
        for fact in rng.sample(range(pairs), count):
            clean += [*lead, chosen[fact]]
            corrupted += [*lead, chosen[fact]]
            others = [value for value in stated if value not in (stated[fact], changed[fact])]
            questions.append(
                Question(len(clean) - 1, (stated[fact],), (changed[fact], *others), (places[fact],))
            )
            clean += [stated[fact], *after]
            corrupted += [changed[fact], *after]
        end = questions[-1].at + 1
        yield Prompt(
            tuple(clean[:end]),
            tuple(corrupted[:end]),
            tuple(questions),
            {
                "key": tuple(place - 1 for place in places),
                "value": tuple(places),
                "query": tuple(question.at for question in questions),
            },
        )

"""Needle: one fact in a haystack of sentences, asked for at the end.

SmolLM2-135M answers 95 % and Gemma 3 270M all of 20 prompts of 420 words (451 tokens on average) in
natural register.
"""

import random
from collections.abc import Iterator

from headscope.kernels.errors import InvalidInput
from headscope.probes.prompts.task import Prompt, Question
from headscope.probes.prompts.tasks._facts import NATURAL, PLAIN, count
from headscope.probes.prompts.tasks._sentences import Filler
from headscope.probes.prompts.tasks._vocabulary import Vocabulary
from headscope.probes.prompts.writing import Writer

METRIC = "accuracy"


def generate(
    n: int,
    seed: int,
    vocabulary: Vocabulary,
    *,
    length: int = 256,
    depth: float | None = None,
    span: int = 1,
) -> Iterator[Prompt]:
    """Draw haystacks that hold ``note KEY VALUE .`` and end in ``ask KEY`` (Wu et al. 2404.15574).

    In natural register the fact is ``The special object of Paris is the hammer.``, inside English
    prose. Key and value appear nowhere else. The corrupted prompt states other values.

    Parameters
    ----------
    n, seed, vocabulary
        Number of prompts, seed of the draw, words to draw from.
    length
        Words and signs in a prompt; of prose, which is not cut inside a sentence, at most so many.
    depth
        Where the fact stands, 0 (start) to 1 (end); None spreads the prompts evenly over 0 to 1.
    span
        Words in the value, 1 or more; each is a question, behind the right ones before it.

    Examples
    --------
    >>> words = next(generate(1, 0, Vocabulary(), length=40, depth=0.5)).clean.split()
    >>> words[-2], words.count(words[-1])
    ('ask', 2)
    """
    if depth is not None and not 0 <= depth <= 1:
        raise InvalidInput(f"depth: {depth} is outside 0 to 1")
    if span < 1:
        raise InvalidInput(f"span: {span} words in the value; use 1 or more")
    wording = PLAIN if vocabulary.plain else NATURAL
    least = wording.size + count(wording.ask) + 2 * (span - 1)
    hay = length - least
    if hay < 0:
        raise InvalidInput(f"length: {length} words do not hold the fact; use {least} or more")
    rng = random.Random(f"needle {seed}")
    keys = vocabulary.take("keys", least=1)
    values = vocabulary.take("values", least=2 * span)
    filler = Filler(rng, vocabulary)
    steps = [f"value{step}" for step in range(span)]
    fact = wording.fact.replace("{value}", " ".join(f"{{{step}}}" for step in steps))

    def draw(number: int) -> Prompt:
        share = depth if depth is not None else number / max(n - 1, 1)
        start = round(share * hay)
        key = keys[rng.randrange(len(keys))]
        drawn = rng.sample(values, 2 * span)
        pairs = list(zip(drawn[:span], drawn[span:], strict=True))
        before, after = filler.text(start), filler.text(hay - start)
        writer = Writer()
        writer.write(before)
        spans = writer.write(fact, key=key, **dict(zip(steps, pairs, strict=True)))
        writer.write(after)
        query = writer.write(wording.ask, key=key)["key"]
        questions = []
        for step, (value, other) in zip(steps, pairs, strict=True):
            questions.append(Question(writer.end, (f" {value}",), (f" {other}",), (spans[step],)))
            if step != steps[-1]:
                writer.write("{value}", value=(value, other))
        roles = {"needle": [spans["whole"]], "key": [spans["key"]], "query": [query]}
        return writer.prompt(questions, roles | {"value": [spans[step] for step in steps]})

    return vocabulary.accept(n, draw)

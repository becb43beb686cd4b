"""Story: a few plain sentences that end in an indirect-object question.

SmolLM2-135M answers 60 % of 20 prompts and Gemma 3 270M 40 %; the logit difference is above 0 on 95
% and 100 %.
"""

import random
from collections.abc import Iterator

from headscope.kernels.errors import InvalidInput
from headscope.probes.prompts.task import Prompt
from headscope.probes.prompts.tasks import ioi
from headscope.probes.prompts.tasks._sentences import small_english
from headscope.probes.prompts.tasks._vocabulary import Vocabulary
from headscope.probes.prompts.writing import Writer, join

METRIC = "logit_difference"


def generate(n: int, seed: int, vocabulary: Vocabulary, *, lines: int = 4) -> Iterator[Prompt]:
    """Draw stories of names, places and things; the last sentence asks who receives.

    The corrupted prompt names a third person as the giver.

    Parameters
    ----------
    n, seed, vocabulary
        Number of prompts, seed of the draw, words to draw from.
    lines
        Sentences before the last, 1 or more.

    Examples
    --------
    >>> next(generate(1, 0, Vocabulary(), lines=1)).clean[-3:]
    ' to'
    """
    if lines < 1:
        raise InvalidInput(f"lines: {lines} sentences; use 1 or more")
    rng = random.Random(f"story {seed}")
    stream = small_english(rng, vocabulary)
    last = random.Random(f"ioi {rng.randrange(2**32)}")

    def draw(_: int) -> Prompt:
        writer = Writer()
        starts = []
        for _ in range(lines):
            writer.write(join(next(stream)))
            starts.append(writer.first_word)
        question, roles = ioi.write(writer, last, vocabulary)
        return writer.prompt([question], {**roles, "sentence": [*starts, writer.first_word]})

    vocabulary.take("names", least=3)
    return vocabulary.accept(n, draw)

"""Docstring: the arguments of a function are described in order, and the next one is asked for."""

import random
from collections.abc import Iterator

from headscope.kernels.errors import InvalidInput
from headscope.probes.prompts.task import Prompt, Question
from headscope.probes.prompts.tasks._vocabulary import Vocabulary
from headscope.probes.prompts.writing import Writer

METRIC = "logit_difference"
ARGUMENTS = 6
# Of the arguments, those that are described, and the one that is asked for.
DESCRIBED, ASKED = (2, 3), 4
DEFINITION = {
    "plain": "open {0}, {1}, {2}, {3}, {4}, {5}.",
    "natural": 'def {name}(self, {0}, {1}, {2}, {3}, {4}, {5}):\n    """{a} {b} {c}\n',
}
DESCRIPTION = {"plain": "note {argument} {a} {b}.", "natural": "\n    :param {argument}: {a} {b}"}
QUESTION = {"plain": "{END}", "natural": "\n    {END}"}
END = {"plain": "note", "natural": ":param"}
CORRUPTIONS = ("random", "documented")


def generate(
    n: int, seed: int, vocabulary: Vocabulary, *, corruption: str = "random"
) -> Iterator[Prompt]:
    """Draw function definitions with the beginning of a docstring (Heimersheim & Janiak 2023).

    Two of six arguments are described; the answer is the one behind them, wrong answers are the
    other five.

    Parameters
    ----------
    n, seed, vocabulary
        Number of prompts, seed of the draw, words to draw from.
    corruption
        ``random``: defined and described arguments become others, which do not agree;
        ``documented``: only the described ones do.

    Examples
    --------
    >>> from headscope.probes.prompts.tasks._vocabulary import Vocabulary
    >>> next(generate(1, 0, Vocabulary())).clean.count("note")
    3
    """
    if corruption not in CORRUPTIONS:
        raise InvalidInput(
            f"corruption: {corruption!r} is unknown; choose {' or '.join(CORRUPTIONS)}"
        )
    rng = random.Random(f"docstring {seed}")
    least = 2 * ARGUMENTS + len(DESCRIBED) + 1
    named = vocabulary.take("keys" if vocabulary.plain else "arguments", least=least)
    descriptors = vocabulary.take("adjectives" if vocabulary.plain else "values", least=3)
    register = vocabulary.register

    def draw(_: int) -> Prompt:
        name, *drawn = rng.sample(named, least)
        described, others, wrong = drawn[:ARGUMENTS], drawn[ARGUMENTS:-2], drawn[-2:]
        corrupted = others if corruption == "random" else described
        writer = Writer()
        fills = {str(at): pair for at, pair in enumerate(zip(described, corrupted, strict=True))}
        about = dict(zip("abc", rng.sample(descriptors, 3), strict=True))
        # A template takes no more than it has fields for.
        spans = writer.write(DEFINITION[register], name=name, **fills, **about)
        roles = {"defined": [spans[str(at)] for at in range(ARGUMENTS)], "described": []}
        for at, other in zip(DESCRIBED, wrong, strict=True):
            about = dict(zip("ab", rng.sample(descriptors, 2), strict=True))
            written = writer.write(DESCRIPTION[register], argument=(described[at], other), **about)
            roles["described"].append(written["argument"])
        roles["END"] = [writer.write(QUESTION[register], END=END[register])["END"]]
        answer, false = (
            described[ASKED],
            [argument for argument in described if argument != described[ASKED]],
        )
        evidence = spans[str(ASKED)]
        question = Question(
            writer.end, (f" {answer}",), tuple(f" {argument}" for argument in false), (evidence,)
        )
        return writer.prompt([question], roles)

    return vocabulary.accept(n, draw)

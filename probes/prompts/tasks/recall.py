"""Recall: many facts are stated, then asked for in another order (multi-query recall).

Of 20 prompts in natural register SmolLM2-135M answers the first question about 2 facts in 55 % and
about 3 in 25 %, Gemma 3 270M in 75 % and 40 %; of both questions about 2 facts 80 % and 65 %.
Naming any stated fact is right in 50 % and 33 %, so analyses try on other prompts how many facts a
model holds. Two wordings that SmolLM2 answers better (73 % and 77 % of 48 about 2 facts, this one
65 %) Gemma answers worse (50 % and 31 % of 32, this one 62 %); solved prompts before each do not
help SmolLM2.
"""

import random
from collections.abc import Iterator

from headscope.kernels.errors import InvalidInput
from headscope.probes.prompts.task import Prompt, Question
from headscope.probes.prompts.tasks._facts import BARE, NATURAL, PLAIN, count, lay
from headscope.probes.prompts.tasks._vocabulary import Vocabulary
from headscope.probes.prompts.writing import Writer

METRIC = "accuracy"


def generate(
    n: int,
    seed: int,
    vocabulary: Vocabulary,
    *,
    pairs: int | None = None,
    queries: int | None = None,
    length: int | None = None,
    bare: bool = False,
) -> Iterator[Prompt]:
    """Draw facts ``note KEY VALUE .`` and questions ``ask KEY`` (Arora et al. 2023).

    In natural register a fact is ``The special object of Paris is the hammer.``. The evidence of a
    question is the stated value. In the corrupted prompt every stated value is another one; the
    first wrong answer of a question is the value in the corrupted prompt.

    Parameters
    ----------
    n, seed, vocabulary
        Number of prompts, seed of the draw, words to draw from.
    pairs
        Facts in a prompt, 2 or more; keys are distinct, and so are values. None states 8, in
        natural register 2; analyses state as many as the model holds.
    queries
        Questions in a prompt, 1 to `pairs`; None asks for every fact once.
    length
        Words in a prompt; sentences stand between the facts to reach it. None uses facts only.
    bare
        State and ask without the words around key and value.

    Examples
    --------
    >>> prompt = next(generate(1, 0, Vocabulary(), pairs=3))
    >>> question = prompt.questions[0]
    >>> f" {prompt.part(question.evidence[0])}" == question.answers[0]
    True
    """
    pairs = (8 if vocabulary.plain else 2) if pairs is None else pairs
    queries = pairs if queries is None else queries
    if pairs < 2:
        raise InvalidInput(f"pairs: {pairs} facts leave nothing to confuse; use 2 or more")
    if not 1 <= queries <= pairs:
        raise InvalidInput(f"queries: {queries} questions about {pairs} facts; use 1 to {pairs}")
    wording = BARE if bare else PLAIN if vocabulary.plain else NATURAL
    # The last answer and what follows it are not written.
    tail = queries * (count(wording.ask) + 1 + len(wording.then)) - 1 - len(wording.then)
    least = pairs * wording.size + tail
    if length is not None and length < least:
        raise InvalidInput(f"length: {length} words do not hold the facts; use {least} or more")
    rng = random.Random(f"recall {seed}")
    keys = vocabulary.take("keys", least=pairs)
    values = vocabulary.take("values", least=pairs + 1)

    def draw(_: int) -> Prompt:
        chosen = rng.sample(keys, pairs)
        stated = rng.sample(values, pairs)
        pairs_of_values = zip(rng.sample(values, pairs), stated, strict=True)
        changed = [
            value if value != old else stated[index - 1]
            for index, (value, old) in enumerate(pairs_of_values)
        ]
        answer = ("", "")
        writer = Writer()
        facts = list(zip(chosen, stated, changed, strict=True))
        spans = lay(writer, rng, vocabulary, wording, facts, length, tail)
        questions: list[Question] = []
        query_spans = []
        for fact in rng.sample(range(pairs), queries):
            if questions:
                writer.write("{value}" + wording.then, value=answer)
            query_spans.append(writer.write(wording.ask, key=chosen[fact])["key"])
            answer = (stated[fact], changed[fact])
            others = [value for value in stated if value not in answer]
            wrong = tuple(f" {value}" for value in (changed[fact], *others))
            evidence = (spans[fact]["value"],)
            questions.append(Question(writer.end, (f" {stated[fact]}",), wrong, evidence))
        roles = {role: [span[role] for span in spans] for role in ("key", "value")}
        return writer.prompt(questions, roles | {"query": query_spans})

    return vocabulary.accept(n, draw)

"""Thread: each fact names the key of the next one; the end of the thread is asked for."""

import random
from collections.abc import Iterator

from headscope.kernels.errors import InvalidInput
from headscope.probes.prompts.task import Prompt, Question
from headscope.probes.prompts.tasks._facts import lay
from headscope.probes.prompts.tasks._vocabulary import Vocabulary

METRIC = "accuracy"


def generate(
    n: int,
    seed: int,
    words: Vocabulary,
    *,
    hops: int = 2,
    threads: int = 2,
    length: int | None = None,
    spelled: bool = False,
) -> Iterator[Prompt]:
    """Draw threads ``note KEY KEY2 . note KEY2 VALUE .`` and end in ``ask KEY`` of one.

    After Needle Threading. The facts stand in random order. The wrong answers are what one step
    gives, the ends of the other threads, and what the corrupted prompt states as the end.

    Parameters
    ----------
    n
        Number of prompts.
    seed
        Seed of the draw.
    words
        Words to use.
    hops
        Facts in a thread, 1 or more; with 1 it is plain recall.
    threads
        Threads in a prompt, 2 or more.
    length
        Words in a prompt; small-English sentences stand between the facts to reach it. None uses
        facts only.
    spelled
        Ask for every step in turn, after the right ones before it, instead of for the end alone.

    Raises
    ------
    InvalidInput
        If `hops` < 1, `threads` < 2, `length` is too short, or too few words are single tokens.

    Examples
    --------
    >>> prompt = next(generate(1, 0, Vocabulary()))
    >>> prompt.words[prompt.questions[0].evidence[0]] == prompt.questions[0].answers[0]
    True
    """
    if hops < 1:
        raise InvalidInput(f"hops: {hops} steps; use 1 or more")
    if threads < 2:
        raise InvalidInput(f"threads: {threads} leave nothing to confuse; use 2 or more")
    keys = words.take("keys", least=hops * threads)
    values = words.take("values", least=2 * threads)
    rng = random.Random(f"thread {seed}")
    for _ in range(n):
        drawn, ends = rng.sample(keys, hops * threads), rng.sample(values, 2 * threads)
        chains = [
            [*drawn[number * hops : (number + 1) * hops], ends[number]] for number in range(threads)
        ]
        steps = [(chain, hop) for chain in range(threads) for hop in range(hops)]
        rng.shuffle(steps)
        facts = [(chains[chain][hop], chains[chain][hop + 1]) for chain, hop in steps]
        target = rng.randrange(threads)
        walk = chains[target][1:-1] if spelled else []
        clean, stated = lay(rng, words, facts, length, 2 + len(walk))
        place = dict(zip(steps, stated, strict=True))
        corrupted = list(clean)
        for chain in range(threads):
            corrupted[place[chain, hops - 1]] = ends[threads + chain]
        others = [chain[-1] for at, chain in enumerate(chains) if at != target]
        start = len(clean) + 1
        last = ends[threads + target]
        if spelled:
            questions = tuple(
                Question(
                    start + hop,
                    (chains[target][hop + 1],),
                    (last, *others) if hop == hops - 1 else tuple(others),
                    (place[target, hop],),
                )
                for hop in range(hops)
            )
        else:
            near = [chains[target][1]] if hops > 1 else []
            evidence = (place[target, hops - 1],)
            questions = (Question(start, (chains[target][-1],), (last, *near, *others), evidence),)
        end = ["ask", chains[target][0], *walk]
        yield Prompt(
            (*clean, *end),
            (*corrupted, *end),
            questions,
            {
                "thread": tuple(place[target, hop] for hop in range(hops)),
                "query": tuple(question.at for question in questions),
            },
        )

"""Thread: each fact names the key of the next one; the end of the thread is asked for.

Of 20 prompts of 2 threads of 2 facts in natural register SmolLM2-135M answers 45 % and Gemma 3 270M
5 %, of single steps 20 % and 55 %: neither solves the task, SmolLM2 also with solved prompts before
each (45 %).
"""

import random
from collections.abc import Iterator

from headscope.kernels.errors import InvalidInput
from headscope.probes.prompts.task import Prompt, Question
from headscope.probes.prompts.tasks._facts import PLAIN, Wording, count, lay
from headscope.probes.prompts.tasks._vocabulary import Vocabulary
from headscope.probes.prompts.writing import Writer

METRIC = "accuracy"
ROADS = Wording("The road from {key} leads to {value}.", "The road from {key} leads to")
# What asks for the end, and what leads from one step to the next where every step is asked.
ENDS = {"plain": "ask {key}", "natural": "The last stop of the road from {key} is"}
STEPS = {"plain": "", "natural": ". The road from {key} leads to"}


def generate(
    n: int,
    seed: int,
    vocabulary: Vocabulary,
    *,
    hops: int = 2,
    threads: int = 2,
    length: int | None = None,
    spelled: bool = False,
) -> Iterator[Prompt]:
    """Draw threads ``note KEY KEY2 . note KEY2 VALUE .`` and end in ``ask KEY`` of one.

    After Needle Threading. In natural register a fact is ``The road from Paris leads to London.``,
    and the question ``The last stop of the road from Paris is``. The facts stand in random order.
    The wrong answers are what one step gives, the ends of the other threads, and what the corrupted
    prompt states as the end.

    Parameters
    ----------
    n, seed, vocabulary
        Number of prompts, seed of the draw, words to draw from.
    hops
        Facts in a thread, 1 or more; with 1 it is plain recall.
    threads
        Threads in a prompt, 2 or more.
    length
        Words in a prompt; sentences stand between the facts to reach it. None uses facts only.
    spelled
        Ask for every step in turn, after the right ones before it, instead of for the end alone.

    Examples
    --------
    >>> prompt = next(generate(1, 0, Vocabulary()))
    >>> f" {prompt.part(prompt.questions[0].evidence[0])}" == prompt.questions[0].answers[0]
    True
    """
    if hops < 1:
        raise InvalidInput(f"hops: {hops} steps; use 1 or more")
    if threads < 2:
        raise InvalidInput(f"threads: {threads} leave nothing to confuse; use 2 or more")
    wording = PLAIN if vocabulary.plain else ROADS
    ask = wording.ask if spelled else ENDS[vocabulary.register]
    step = STEPS[vocabulary.register]
    tail = count(ask) + ((hops - 1) * (1 + count(step)) if spelled else 0)
    keys = vocabulary.take("keys", least=hops * threads)
    values = vocabulary.take("values" if vocabulary.plain else "towns", least=2 * threads)
    rng = random.Random(f"thread {seed}")

    def draw(_: int) -> Prompt:
        drawn, ends = rng.sample(keys, hops * threads), rng.sample(values, 2 * threads)
        chains = [
            [*drawn[number * hops : (number + 1) * hops], ends[number]] for number in range(threads)
        ]
        order = [(chain, hop) for chain in range(threads) for hop in range(hops)]
        rng.shuffle(order)
        facts = [
            (
                chains[chain][hop],
                chains[chain][hop + 1],
                ends[threads + chain] if hop == hops - 1 else chains[chain][hop + 1],
            )
            for chain, hop in order
        ]
        target = rng.randrange(threads)
        chain, last = chains[target], ends[threads + target]
        writer = Writer()
        spans = lay(writer, rng, vocabulary, wording, facts, length, tail)
        stated = {fact: span["value"] for fact, span in zip(order, spans, strict=True)}
        others = [other[-1] for at, other in enumerate(chains) if at != target]
        query_spans = [writer.write(ask, key=chain[0])["key"]]
        if not spelled:
            near = [chain[1]] if hops > 1 else []
            questions = [_ask(writer, chain[-1], [last, *near, *others], stated[target, hops - 1])]
        else:
            questions = []
            for hop in range(hops):
                if hop:
                    fact_spans = writer.write("{key}", key=chain[hop])["key"]
                    query_spans.append(writer.write(step, key=chain[hop]).get("key", fact_spans))
                wrong = [last, *others] if hop == hops - 1 else others
                questions.append(_ask(writer, chain[hop + 1], wrong, stated[target, hop]))
        walk = [stated[target, hop] for hop in range(hops)]
        return writer.prompt(questions, {"thread": walk, "query": query_spans})

    return vocabulary.accept(n, draw)


def _ask(writer: Writer, answer: str, wrong: list[str], evidence: tuple[int, int]) -> Question:
    others = tuple(f" {word}" for word in wrong)
    return Question(writer.end, (f" {answer}",), others, (evidence,))

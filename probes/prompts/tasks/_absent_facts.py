"""Questions with a known hallucination: the fact that is asked for is not in the context."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from headscope.kernels.errors import NotApplicable
from headscope.probes.prompts import writing
from headscope.probes.prompts.task import Prompt

if TYPE_CHECKING:
    from headscope.probes.prompts.task import Task
    from headscope.probes.prompts.tokenized_text import Tokenizer

KEY, QUERY = "key", "query"


def with_stated_fact(task: Task) -> Task:
    """Truncate every prompt at its first question, whose fact the context states."""
    return replace(task, prompts=tuple(_first(prompt) for prompt in task.prompts))


def with_absent_fact(task: Task, tokenizer: Tokenizer, seed: int = 0) -> Task:
    """Replace the key of the question by another one wherever the context states it.

    The twin has as many tokens, the same question and the same stated values, so whatever the model
    answers is not supported. The prompts have one question each, and the roles ``key`` and
    ``query``.

    Examples
    --------
    >>> from headscope.probes import load_model, tasks
    >>> tokenizer = load_model("headscope/bundled").tokenizer
    >>> known = with_stated_fact(tasks.make("recall", tokenizer, n=1))
    >>> key = known.prompts[0].clean.split()[-1]
    >>> [task.prompts[0].clean.count(key) for task in (known, with_absent_fact(known, tokenizer))]
    [2, 1]
    """
    from headscope.probes.prompts.tasks._vocabulary import Vocabulary

    rng = random.Random(f"absent {seed}")
    keys = Vocabulary(tokenizer, register=task.register or None).take("keys")
    prompts = tuple(_without(prompt, keys, rng, tokenizer, task.name) for prompt in task.prompts)
    return replace(task, name=f"{task.name}, fact absent", prompts=prompts)


def _without(
    prompt: Prompt, keys: tuple[str, ...], rng: random.Random, tokenizer: Tokenizer, name: str
) -> Prompt:
    from headscope.probes.prompts.tokenized_text import tokenize

    queries = prompt.roles.get(QUERY, ())
    key = prompt.part(queries[0]) if queries else ""
    spans = [span for span in prompt.roles.get(KEY, ()) if key and prompt.part(span) == key]
    if not spans or not isinstance(prompt.clean, str):
        raise NotApplicable(
            f"roles: task {name} does not say where the context states {key!r}; "
            "use recall or needle"
        )
    others = [key for key in keys if not re.search(rf"\b{re.escape(key)}\b", prompt.clean)]
    while others:
        other = rng.choice(others)
        changed = writing.replace(prompt, dict.fromkeys(spans, other))
        assert isinstance(changed.clean, str)
        before, after = tokenize(tokenizer, [prompt.clean, changed.clean])
        if len(before.ids) == len(after.ids):
            return changed
        others.remove(other)
    raise NotApplicable(f"words: no other key has as many tokens as {key!r}; use another seed")


def _first(prompt: Prompt) -> Prompt:
    question = prompt.questions[0]
    end = question.at
    return Prompt(
        prompt.clean[:end],
        prompt.corrupted[: prompt.corrupted_position(end)],
        (question,),
        {
            role: tuple(span for span in spans if span[1] <= end)
            for role, spans in prompt.roles.items()
        },
        tuple(change for change in prompt.changes if change[0][1] <= end),
    )

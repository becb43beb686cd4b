"""Questions with a known hallucination: the fact that is asked for is not in the context."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.prompts.task import Prompt, Task
    from headscope.probes.prompts.tokens import Tokenizer

KEY = "key"


def stated(task: Task) -> Task:
    """Cut every prompt at its first question, whose fact the context states."""
    return replace(task, prompts=tuple(_first(prompt) for prompt in task.prompts))


def absent(task: Task, tokenizer: Tokenizer, seed: int = 0) -> Task:
    """Put another key in the place of the asked one wherever the context states it.

    The twin has the same words otherwise, the same question and the same stated values, so whatever
    the model answers is not supported.

    Parameters
    ----------
    task
        Prompts of one question each, with the role ``key``.
    tokenizer
        Keeps other keys that are one token.
    seed
        Seed of the draw of other keys.

    Raises
    ------
    NotApplicable
        When the role is missing or the asked word is no stated key.

    Examples
    --------
    >>> from headscope.probes import load_model, tasks
    >>> tokenizer = load_model("headscope/bundled").tokenizer
    >>> known = stated(tasks.make("recall", tokenizer, n=1))
    >>> asked = known.prompts[0].words[-1]
    >>> known.prompts[0].words.count(asked), (
    ...     absent(known, tokenizer).prompts[0].words.count(asked))
    (2, 1)
    """
    from headscope.probes.prompts.tasks._vocabulary import Vocabulary

    rng = random.Random(f"absent {seed}")
    keys = Vocabulary(tokenizer).take("keys")
    prompts = []
    for prompt in task.prompts:
        key = prompt.words[prompt.questions[0].at]
        places = [at for at in prompt.roles.get(KEY, ()) if prompt.words[at] == key]
        if not places:
            raise NotApplicable(
                f"roles: task {task.name} does not say where the context states {key!r}; "
                "use recall or needle"
            )
        other = rng.choice([key for key in keys if key not in prompt.words])
        words = [other if at in places else word for at, word in enumerate(prompt.words)]
        prompts.append(replace(prompt, words=tuple(words)))
    return replace(task, name=f"{task.name}, fact absent", prompts=tuple(prompts))


def _first(prompt: Prompt) -> Prompt:
    question = prompt.questions[0]
    end = question.at + 1
    roles = {
        role: tuple(place for place in places if place < end)
        for role, places in prompt.roles.items()
    }
    return replace(
        prompt,
        words=prompt.words[:end],
        corrupted=prompt.corrupted[:end],
        questions=(question,),
        roles=roles,
    )

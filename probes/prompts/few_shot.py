"""Few-shot prompts: solved prompts of a task (shots) before each of its prompts."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.probes.prompts.task import Prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headscope.probes.prompts.task import Span, Task

# What ends a solved prompt, by register; a user's own prompts end as they end.
ENDS = {"plain": ".", "natural": ".\n", "": "\n"}
SHOT = "shot"


def few_shot(
    task: Task, shots: int, pool: Task | None = None, *, seed: int = 0, distinct_role: str = ""
) -> Task:
    """Prepend solved prompts to each prompt of a task; the role ``shot`` holds their spans.

    Parameters
    ----------
    task
        Prompts of text; the shots stand before the clean and before the corrupted one alike.
    shots
        Number of shots before a prompt; 0 leaves it.
    pool
        Where shots come from; None takes the other prompts of the task.
    seed
        Seed of the draw.
    distinct_role
        A role; no two prompts that have a text of this role in common are put together.

    Examples
    --------
    >>> from headscope.probes import tasks
    >>> task = few_shot(tasks.make("recall", n=3, pairs=2, queries=1), 1)
    >>> prompt = task.prompts[0]
    >>> prompt.part(prompt.roles["shot"][0]).count("note"), prompt.clean.count("note")
    (2, 4)
    """
    if shots < 0:
        raise InvalidInput(f"shots: {shots}; give 0 or more")
    rng = random.Random(f"few_shot {seed}")
    prompts = []
    for prompt in task.prompts:
        if not isinstance(prompt.clean, str):
            raise NotApplicable(f"shots: the prompts of {task.name} are token ids, not text")
        chosen: list[Prompt] = []
        used = _texts(prompt, distinct_role)
        others = [other for other in (pool or task).prompts if other is not prompt]
        for example in rng.sample(others, len(others)):
            if len(chosen) < shots and not used & _texts(example, distinct_role):
                chosen.append(example)
                used |= _texts(example, distinct_role)
        if len(chosen) < shots:
            raise NotApplicable(
                f"shots: {len(chosen)} of {shots} can be had for a prompt of {task.name}; "
                "ask for fewer shots or for more prompts"
            )
        prompts.append(_behind(prompt, chosen, ENDS[task.register]))
    return replace(task, prompts=tuple(prompts))


def _texts(prompt: Prompt, role: str) -> set[object]:
    return {prompt.part(span) for span in prompt.roles.get(role, ())}


def _solved(prompt: Prompt) -> str:
    """Return a prompt with the answer of its last question, and what stands behind it if any."""
    last = max(prompt.questions, key=lambda question: question.at)
    answer = last.answers[0] if last.at == len(prompt.clean) else ""
    return f"{prompt.clean}{answer}"


def _behind(prompt: Prompt, shots: Sequence[Prompt], end: str) -> Prompt:
    """Return a prompt behind solved ones, with its questions and roles where they stand now."""
    prefix, spans = "", []
    for shot in shots:
        text = f"{_solved(shot)}{end}"
        spans.append((len(prefix), len(prefix) + len(text)))
        prefix += text if text[-1].isspace() else f"{text} "

    def moved(span: Span) -> Span:
        return span[0] + len(prefix), span[1] + len(prefix)

    questions = tuple(
        replace(
            question, at=question.at + len(prefix), evidence=tuple(map(moved, question.evidence))
        )
        for question in prompt.questions
    )
    roles = {role: tuple(map(moved, spans_of)) for role, spans_of in prompt.roles.items()}
    return Prompt(
        f"{prefix}{prompt.clean}",
        f"{prefix}{prompt.corrupted}",
        questions,
        {**roles, SHOT: tuple(spans)} if spans else roles,
        tuple((moved(before), moved(after)) for before, after in prompt.changes),
    )

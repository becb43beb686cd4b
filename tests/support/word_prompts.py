"""Prompts given by words, for models whose every word is one token."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from headscope.probes.prompts.task import Prompt, Question, Span
from headscope.probes.prompts.writing import continuation, join_words, split


class Asked(NamedTuple):
    """A question behind the word at a position, and its evidence, counted in words."""

    at: int
    answers: tuple[str, ...]
    wrong: tuple[str, ...] = ()
    evidence: tuple[int, ...] = ()


def word_prompt(
    words: Sequence[str], corrupted: Sequence[str], questions: Iterable[Asked]
) -> Prompt:
    """Join words to a prompt with its questions."""
    text, spans = join_words(words)
    twin, places = join_words(corrupted)
    pairs = zip(spans, places, words, corrupted, strict=True)
    changes = tuple((first, second) for first, second, word, changed in pairs if word != changed)
    asked = tuple(
        Question(
            spans[question.at][1],
            tuple(continuation(words[question.at], word) for word in question.answers),
            tuple(continuation(words[question.at], word) for word in question.wrong),
            tuple(spans[at] for at in question.evidence),
        )
        for question in questions
    )
    return Prompt(text, twin, asked, changes=changes)


class InWords(NamedTuple):
    """A prompt whose positions count words."""

    words: tuple[str, ...]
    corrupted: tuple[str, ...]
    questions: tuple[Asked, ...]
    roles: dict[str, tuple[int, ...]]


def in_words(prompt: Prompt) -> InWords:
    """Count the positions of a text in words."""
    assert isinstance(prompt.clean, str)
    assert isinstance(prompt.corrupted, str)
    text = prompt.clean

    def numbers(spans: Iterable[Span]) -> tuple[int, ...]:
        return tuple(
            number
            for start, stop in spans
            for number in range(len(split(text[:start])), len(split(text[:stop])))
        )

    asked = tuple(
        Asked(
            len(split(text[: question.at])) - 1,
            tuple(str(answer).strip() for answer in question.answers),
            tuple(str(answer).strip() for answer in question.wrong),
            numbers(question.evidence),
        )
        for question in prompt.questions
    )
    roles = {role: numbers(spans) for role, spans in prompt.roles.items()}
    return InWords(tuple(split(text)), tuple(split(prompt.corrupted)), asked, roles)

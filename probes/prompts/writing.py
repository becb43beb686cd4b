"""Write a prompt piece by piece, clean and corrupted side by side, and keep where things stand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from string import Formatter
from typing import TYPE_CHECKING

from headscope.probes.prompts.task import Prompt, Question, move

if TYPE_CHECKING:
    from headscope.probes.prompts.task import Span

GLUED = frozenset(",.?!:;")
WHOLE = "whole"
_WORD = re.compile(r"\d{2}|[^\W\d_]+|[^\w\s]|\S")


class Writer:
    """A text that grows; every piece says where it stands.

    >>> writer = Writer()
    >>> writer.write("note {key} {value}.", key="dog", value=("north", "south"))["value"]
    (9, 14)
    >>> writer.clean, writer.corrupted
    ('note dog north.', 'note dog south.')
    """

    def __init__(self) -> None:
        self.clean = self.corrupted = ""
        self._start = 0
        self._changes: list[tuple[Span, Span]] = []

    @property
    def end(self) -> int:
        """Position behind what is written."""
        return len(self.clean)

    def write(self, template: str, **fills: str | tuple[str, str]) -> dict[str, Span]:
        """Append a template behind a space, unless it begins with a sign or a space of its own.

        A field in braces is filled by a text, or a pair of the clean and the corrupted one. Returns
        where each field stands, and the piece itself as ``whole``.
        """
        spans: dict[str, Span] = {}
        separated = self.clean[-1:].isspace() or template[:1].isspace() or template[:1] in GLUED
        if template and self.clean and not separated:
            self._append(" ", " ")
        start = self._start = self.end
        for text, name, _, _ in Formatter().parse(template):
            self._append(text, text)
            if name is not None:
                fill = fills[name]
                pair = (fill, fill) if isinstance(fill, str) else fill
                spans[name] = self._append(*pair)
        return spans | {WHOLE: (start, self.end)}

    @property
    def first_word(self) -> Span:
        """Span of the first word of the last piece."""
        return self.word_after((0, self._start))

    def word_after(self, span: Span) -> Span:
        """Return where the word behind a span stands."""
        match = re.compile(r"\w+|[^\w\s]+").search(self.clean, span[1])
        assert match is not None
        return match.span()

    def prompt(
        self, questions: Iterable[Question], roles: Mapping[str, Iterable[Span]] | None = None
    ) -> Prompt:
        """Return what is written, with its questions and roles."""
        return Prompt(
            self.clean,
            self.corrupted,
            tuple(questions),
            {role: tuple(spans) for role, spans in (roles or {}).items()},
            tuple(self._changes),
        )

    def _append(self, clean: str, corrupted: str) -> Span:
        start, corrupted_start = len(self.clean), len(self.corrupted)
        self.clean += clean
        self.corrupted += corrupted
        span = (start, len(self.clean))
        if clean != corrupted:
            self._changes.append((span, (corrupted_start, len(self.corrupted))))
        return span


def is_glued(before: str, word: str) -> bool:
    """Whether `word` stands right after `before`, without a space (punctuation, year digits).

    >>> is_glued("store", ","), is_glued("17", "32"), is_glued("the", "17")
    (True, True, False)
    """
    return word in GLUED or (before.isdigit() and word.isdigit())


def continuation(before: str, word: str) -> str:
    """Return a word as the continuation of a text that ends in another, with its space.

    >>> continuation("the", "cat"), continuation("17", "32")
    (' cat', '32')
    """
    return word if is_glued(before, word) else f" {word}"


def join_words(words: Iterable[str]) -> tuple[str, tuple[Span, ...]]:
    """Join words to a text; return it with the span of each word.

    >>> join_words(("In", "17", "32", ",", "it"))
    ('In 1732, it', ((0, 2), (3, 5), (5, 7), (7, 8), (9, 11)))
    """
    text, spans, before = "", [], ""
    for word in words:
        if text and not is_glued(before, word):
            text += " "
        spans.append((len(text), len(text) + len(word)))
        text += word
        before = word
    return text, tuple(spans)


def join(words: Iterable[str]) -> str:
    """The text of some words."""
    return join_words(words)[0]


def split(text: str) -> list[str]:
    """The words and signs of a text, digits in pairs; the other way round than `join`.

    >>> split("In 1732, it")
    ['In', '17', '32', ',', 'it']
    """
    return _WORD.findall(text)


def replace(prompt: Prompt, texts: Mapping[Span, str]) -> Prompt:
    """Write other texts over spans of a clean prompt; questions and roles move along.

    What comes out has no corrupted side of its own.

    >>> ask = Question(at=19, answers=(" north",), evidence=((9, 14),))
    >>> other = replace(Prompt("note dog north. ask", "note dog south. ask", (ask,)), {(5, 8): "a"})
    >>> other.clean, other.questions[0].at, other.questions[0].evidence
    ('note a north. ask', 17, ((7, 12),))
    """
    assert isinstance(prompt.clean, str)
    text, last, written = "", 0, {}
    for (start, stop), new in sorted(texts.items()):
        text += prompt.clean[last:start]
        written[start, stop] = (len(text), len(text) + len(new))
        text += new
        last = stop
    text += prompt.clean[last:]
    moved = tuple(written.items())

    def moved_span(span: Span) -> Span:
        return written.get(span, (move(span[0], moved), move(span[1], moved)))

    return Prompt(
        text,
        text,
        tuple(
            Question(
                move(question.at, moved),
                question.answers,
                question.wrong,
                tuple(moved_span(span) for span in question.evidence),
            )
            for question in prompt.questions
        ),
        {role: tuple(map(moved_span, spans)) for role, spans in prompt.roles.items()},
    )

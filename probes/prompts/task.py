"""Tasks: prompts with questions whose answers are known.

A prompt is text, and every position in it counts CHARACTERS; `tokens.encode` turns them into token
positions of one tokenizer. A prompt of random tokens holds token ids instead, and counts those.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from headscope.kernels.errors import InvalidInput

METRICS = ("logit_difference", "probability_difference", "accuracy")

# First position, and the one behind the last.
Span = tuple[int, int]
Content = str | tuple[int, ...]


@dataclass(frozen=True)
class Question:
    """One position of a prompt where the continuation is known.

    Parameters
    ----------
    at
        Position whose continuation is scored: what comes after ``text[:at]``.
    answers
        Right continuations, with their leading space where they have one; any of them counts. Of a
        prompt of token ids, token ids.
    wrong
        Wrong continuations that are held against the answers.
    evidence
        Spans that hold the answer (or the facts that decide it).
    """

    at: int
    answers: tuple[str, ...] | tuple[int, ...]
    wrong: tuple[str, ...] | tuple[int, ...] = ()
    evidence: tuple[Span, ...] = ()

    def __post_init__(self) -> None:
        if not self.answers:
            raise InvalidInput("answers: a question needs at least one answer")
        if "" in (*self.answers, *self.wrong):
            raise InvalidInput("answers: an empty text continues nothing; leave it out")
        shared = [answer for answer in self.answers if answer in self.wrong]
        if shared:
            raise InvalidInput(f"wrong: {shared[0]!r} is also an answer; list it once")


@dataclass(frozen=True)
class Prompt:
    """A text, its corrupted twin, and the questions asked about it.

    Parameters
    ----------
    clean
        The clean text; or token ids, which no tokenizer has to know.
    corrupted
        The same with the decisive words changed. It must give as many tokens.
    questions
        Questions about the clean prompt, at least one.
    roles
        Role name to spans of the clean prompt (e.g. ``{"S2": ((38, 42),)}``).
    changes
        Where the two differ: pairs of a span of the clean and one of the corrupted prompt, in
        order. Without them, all between the first and the last difference is one change.

    Examples
    --------
    >>> ask = Question(at=11, answers=(" north",), evidence=((5, 10),))
    >>> Prompt("note north.", "note south.", (ask,)).corrupted_position(11)
    11
    """

    clean: Content
    corrupted: Content
    questions: tuple[Question, ...]
    roles: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)
    changes: tuple[tuple[Span, Span], ...] = ()

    def __post_init__(self) -> None:
        length = len(self.clean)
        if not (self.clean.strip() if isinstance(self.clean, str) else self.clean):
            raise InvalidInput("clean: the prompt is empty; give at least one word")
        if isinstance(self.clean, str) is not isinstance(self.corrupted, str):
            raise InvalidInput("corrupted: give two texts, or token ids twice")
        if not isinstance(self.clean, str) and len(self.corrupted) != length:
            raise InvalidInput(
                f"corrupted: {len(self.corrupted)} tokens where the clean prompt has {length}; "
                "make both the same length"
            )
        if not self.questions:
            raise InvalidInput("questions: a prompt needs at least one question")
        unit = "characters" if isinstance(self.clean, str) else "tokens"
        for question in self.questions:
            if not 0 < question.at <= length:
                raise InvalidInput(
                    f"at: position {question.at} is outside the prompt of {length} {unit}"
                )
        evidence = [span for question in self.questions for span in question.evidence]
        for name, spans in {"evidence": evidence, **self.roles}.items():
            for start, stop in spans:
                if not 0 <= start < stop <= length:
                    raise InvalidInput(
                        f"roles: {name} at {start} to {stop} points outside the prompt of "
                        f"{length} {unit}"
                    )
        if not self.changes and self.clean != self.corrupted:
            object.__setattr__(self, "changes", (_difference(self.clean, self.corrupted),))

    def part(self, span: Span) -> Content:
        """Return the text of a span of the clean prompt."""
        return self.clean[span[0] : span[1]]

    def corrupted_position(self, position: int) -> int:
        """Return where a position of the clean prompt lies in the corrupted one."""
        return move(position, self.changes)


@dataclass(frozen=True)
class Task:
    """A named, seeded set of prompts with the metric that scores them.

    Parameters
    ----------
    name
        Name in the registry, or the name of the user's file.
    prompts
        At least one prompt.
    metric
        ``logit_difference`` (mean answer logit minus mean wrong logit),
        ``probability_difference`` (summed answer minus summed wrong probability, -1 to 1) or
        ``accuracy`` (share of questions whose most likely next token begins an answer, 0 to 1).
    seed
        Seed the prompts were drawn with.
    doc
        What the task asks, one line.
    redrawn
        Draws that the tokenizer did not allow, so that others were drawn in their place.
    register
        Wording: ``plain`` (the words of the bundled models) or ``natural``; "" for a user's own.
    """

    name: str
    prompts: tuple[Prompt, ...]
    metric: str
    seed: int
    doc: str
    redrawn: int = 0
    register: str = ""

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise InvalidInput(
                f"metric: {self.metric!r} is unknown; choose one of {', '.join(METRICS)}"
            )
        if not self.prompts:
            raise InvalidInput("prompts: the task has none; ask for n >= 1")

    def __len__(self) -> int:
        return len(self.prompts)


def move(position: int, changes: tuple[tuple[Span, Span], ...]) -> int:
    """Return where a position lies after changes of a text, given as (span before, span after).

    >>> move(9, (((0, 4), (0, 6)),))
    11
    """
    moved = position
    for before, after in changes:
        if before[1] <= position:
            moved = position + after[1] - before[1]
    return moved


def _difference(clean: Content, corrupted: Content) -> tuple[Span, Span]:
    """Return what lies between the first and the last difference, of a text in whole words."""
    shorter = min(len(clean), len(corrupted))
    start = next((at for at in range(shorter) if clean[at] != corrupted[at]), shorter)
    suffix = 0
    while suffix < shorter - start and clean[-1 - suffix] == corrupted[-1 - suffix]:
        suffix += 1
    if isinstance(clean, str):
        while start and not clean[start - 1].isspace():
            start -= 1
        while suffix and not clean[-suffix].isspace():
            suffix -= 1
    return (start, len(clean) - suffix), (start, len(corrupted) - suffix)

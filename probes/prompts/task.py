"""Tasks: prompts with questions whose answers are known.

Every position counts WORDS, 0 being the first word of the prompt; `tokens.encode` turns
them into token positions of one tokenizer (one later where a BOS stands first).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from headscope.kernels.errors import InvalidInput

METRICS = ("logit_difference", "probability_difference", "accuracy")


@dataclass(frozen=True)
class Question:
    """One place of a prompt where the next word is known.

    Parameters
    ----------
    at
        Word position whose next-word prediction is scored.
    answers
        Right next words; any of them counts.
    wrong
        Wrong next words that are held against the answers.
    evidence
        Word positions that hold the answer (or the facts that decide it).

    Raises
    ------
    InvalidInput
        If there is no answer, or a word is both right and wrong.

    Examples
    --------
    >>> Question(at=1, answers=("Mary",), wrong=("John",)).answers
    ('Mary',)
    """

    at: int
    answers: tuple[str, ...]
    wrong: tuple[str, ...] = ()
    evidence: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.answers:
            raise InvalidInput("answers: a question needs at least one answer word")
        both = set(self.answers) & set(self.wrong)
        if both:
            raise InvalidInput(f"wrong: {sorted(both)[0]!r} is also an answer; list it once")


@dataclass(frozen=True)
class Prompt:
    """Words, a corrupted twin of the same length, and the questions asked about them.

    Parameters
    ----------
    words
        The clean prompt.
    corrupted
        The same prompt with the decisive words changed; same number of words.
    questions
        Questions about the clean prompt, at least one.
    roles
        Role name to word positions (e.g. ``{"S2": (9,)}``).

    Raises
    ------
    InvalidInput
        If the lengths differ, there is no question, or a position is outside the prompt.

    Examples
    --------
    >>> ask = Question(at=1, answers=("b",), evidence=(0,))
    >>> len(Prompt(("b", "a"), ("c", "a"), (ask,)).words)
    2
    """

    words: tuple[str, ...]
    corrupted: tuple[str, ...]
    questions: tuple[Question, ...]
    roles: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        length = len(self.words)
        if not length:
            raise InvalidInput("words: the prompt is empty; give at least one word")
        if len(self.corrupted) != length:
            raise InvalidInput(
                f"corrupted: {len(self.corrupted)} words where the clean prompt has {length}; "
                "make both the same length"
            )
        if not self.questions:
            raise InvalidInput("questions: a prompt needs at least one question")
        for question in self.questions:
            for place in (question.at, *question.evidence):
                if not 0 <= place < length:
                    raise InvalidInput(
                        f"at: position {place} is outside the prompt of {length} words"
                    )
        for role, places in self.roles.items():
            if any(not 0 <= place < length for place in places):
                raise InvalidInput(f"roles: {role} points outside the prompt of {length} words")


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
        ``accuracy`` (share of questions whose most likely next word is an answer, 0 to 1).
    seed
        Seed the prompts were drawn with.
    doc
        What the task asks, one line.

    Raises
    ------
    InvalidInput
        If the metric is unknown or there is no prompt.

    Examples
    --------
    >>> from headscope.probes import tasks
    >>> tasks.make("ioi", n=3, seed=1).metric
    'logit_difference'
    """

    name: str
    prompts: tuple[Prompt, ...]
    metric: str
    seed: int
    doc: str

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise InvalidInput(
                f"metric: {self.metric!r} is unknown; choose one of {', '.join(METRICS)}"
            )
        if not self.prompts:
            raise InvalidInput("prompts: the task has none; ask for n >= 1")

    def __len__(self) -> int:
        return len(self.prompts)

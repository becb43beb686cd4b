"""Encode the words of a task as tokens of a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Protocol

from headscope.kernels.errors import NotApplicable
from headscope.probes.prompts.task import Prompt, Task

GLUED = frozenset(",.?!:;")


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that tasks need."""

    bos_token_id: int | None
    unk_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]:
        """Token ids of a text."""
        ...


@dataclass(frozen=True)
class EncodedQuestion:
    """A question in token positions: `at`, `evidence`; and in token ids: the words."""

    at: int
    answer_ids: tuple[int, ...]
    wrong_ids: tuple[int, ...]
    evidence: tuple[int, ...]


@dataclass(frozen=True)
class EncodedTask:
    """A task in the tokens of one tokenizer.

    `offset` is 1 where a BOS or [CLS] stands before the first word, else 0: token position = word
    position + offset. One entry a prompt in `ids`, `corrupted_ids`, `questions` and `roles`.
    """

    name: str
    metric: str
    ids: tuple[tuple[int, ...], ...]
    corrupted_ids: tuple[tuple[int, ...], ...]
    offset: int
    questions: tuple[tuple[EncodedQuestion, ...], ...]
    roles: tuple[dict[str, tuple[int, ...]], ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def asked(self) -> tuple[tuple[int, ...], ...]:
        """Positions whose next token is asked for, rising, prompt by prompt."""
        return tuple(tuple(sorted({question.at for question in row})) for row in self.questions)

    def corrupted(self) -> EncodedTask:
        """Ask the questions of the clean prompts on the corrupted ones."""
        return replace(self, ids=self.corrupted_ids)

    def part(self, prompts: slice) -> EncodedTask:
        """Take some of the prompts."""
        return replace(
            self, ids=self.ids[prompts], corrupted_ids=self.corrupted_ids[prompts],
            questions=self.questions[prompts], roles=self.roles[prompts],
        )  # fmt: skip


def is_glued(before: str, word: str) -> bool:
    """Whether `word` stands right after `before`, without a space (punctuation, year digits).

    >>> is_glued("store", ","), is_glued("17", "32"), is_glued("the", "17")
    (True, True, False)
    """
    return word in GLUED or (before.isdigit() and word.isdigit())


def join(words: tuple[str, ...]) -> str:
    """The text of some words.

    >>> join(("In", "17", "32", ",", "it"))
    'In 1732, it'
    """
    pieces = list(words[:1])
    for before, word in pairwise(words):
        pieces.append(word if is_glued(before, word) else f" {word}")
    return "".join(pieces)


def _pieces(tokenizer: Tokenizer, word: str, before: str | None) -> list[int]:
    # A stand-in word before the word: SentencePiece marks the start of a text like a space, so the
    # ids of a word inside a sentence can only be read behind another word.
    if before is None:
        return list(tokenizer.encode(word, add_special_tokens=False))
    glued = is_glued(before, word)
    lead = "." if glued and word.isdigit() else "a"
    head = list(tokenizer.encode(lead, add_special_tokens=False))
    text = lead + word if glued else f"{lead} {word}"
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    return ids[len(head) :] if ids[: len(head)] == head else []


def is_single(tokenizer: Tokenizer, word: str) -> bool:
    """Whether a word inside a sentence is one known token.

    Parameters
    ----------
    tokenizer
        A Hugging Face tokenizer, or anything with its `encode`.
    word
        A word without spaces.

    Examples
    --------
    >>> class Letters:
    ...     bos_token_id = unk_token_id = None
    ...     def encode(self, text, *, add_special_tokens=True):
    ...         return [ord(letter) for letter in text if letter != " "]
    >>> is_single(Letters(), "x"), is_single(Letters(), "xy")
    (True, False)
    """
    ids = _pieces(tokenizer, word, "the")
    return len(ids) == 1 and ids[0] != tokenizer.unk_token_id


def _ends(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Say what stands around a text: BOS before it, or an encoder's [CLS] and [SEP]."""
    first, last = (getattr(tokenizer, name, None) for name in ("cls_token_id", "sep_token_id"))
    if first is not None and last is not None:
        return (int(first),), (int(last),)
    return (() if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)), ()


def encode(task: Task, tokenizer: Tokenizer) -> EncodedTask:
    """Encode a task: one token a word, BOS first where the tokenizer has one.

    Of an encoder's tokenizer, [CLS] stands first and [SEP] last, as around any of its texts.

    Parameters
    ----------
    task
        Prompts in words.
    tokenizer
        Tokenizer of the model.

    Returns
    -------
    EncodedTask
        Ids, corrupted ids and questions in token positions.

    Raises
    ------
    NotApplicable
        If a word is not exactly one token (names the word).

    Examples
    --------
    >>> from headscope.probes import tasks
    >>> class Words:
    ...     bos_token_id, unk_token_id = 0, None
    ...     def encode(self, text, *, add_special_tokens=True):
    ...         return [1 + hash(w) % 999983 for w in text.replace(",", " ,").split()]
    >>> encode(tasks.make("ioi", n=1), Words()).offset
    1
    """

    @cache
    def token_of(word: str, before: str | None) -> int:
        ids = _pieces(tokenizer, word, before)
        if len(ids) != 1:
            raise NotApplicable(
                f"words: {word!r} is not one token of this tokenizer ({len(ids)} pieces); "
                "use another word or tokenizer"
            )
        if ids[0] == tokenizer.unk_token_id:
            raise NotApplicable(f"words: this tokenizer does not know {word!r}; use another word")
        return ids[0]

    # Only whether the word is glued to the one before matters, so two stand-ins serve the cache.
    def at_place(words: tuple[str, ...], place: int, word: str) -> int:
        if not place:
            return token_of(word, None)
        before = words[place - 1]
        return token_of(word, ("17" if before.isdigit() else "the"))

    lead, trail = _ends(tokenizer)
    offset = len(lead)

    def ids_of(words: tuple[str, ...]) -> tuple[int, ...]:
        inside = tuple(at_place(words, place, word) for place, word in enumerate(words))
        return lead + inside + trail

    def questions_of(prompt: Prompt) -> tuple[EncodedQuestion, ...]:
        return tuple(
            EncodedQuestion(
                question.at + offset,
                tuple(at_place(prompt.words, question.at + 1, word) for word in question.answers),
                tuple(at_place(prompt.words, question.at + 1, word) for word in question.wrong),
                tuple(place + offset for place in question.evidence),
            )
            for question in prompt.questions
        )

    return EncodedTask(
        name=task.name,
        metric=task.metric,
        ids=tuple(ids_of(prompt.words) for prompt in task.prompts),
        corrupted_ids=tuple(ids_of(prompt.corrupted) for prompt in task.prompts),
        offset=offset,
        questions=tuple(questions_of(prompt) for prompt in task.prompts),
        roles=tuple(
            {role: tuple(place + offset for place in places) for role, places in p.roles.items()}
            for p in task.prompts
        ),
    )
